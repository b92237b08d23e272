/* SPDX-License-Identifier: MIT */
/* The two sides. ping_pong.c includes this once for each place at which they are to lie. */

/* The other side. It says that it is there by handing over once; then it answers each turn. */
RL_TIMED static void *SIDE(answer)(void *argument)
{
	struct shared *shared = argument;
	struct side *me = &shared->side[1];

	me->error = enter(shared, 1);
	send(shared, 1);
	if (me->error)
		return NULL;
	getrusage(RUSAGE_THREAD, &me->before);
	RL_LAYOUT_PAD();
	for (uint64_t turn = 0; !me->error && turn < shared->job.turns; turn++) {
		me->error = receive(shared, 1);
		if (shared->give_up)
			break;
		if (!me->error)
			me->error = send(shared, 1);
	}
	getrusage(RUSAGE_THREAD, &me->after);
	if (!me->error)
		me->error = leave(shared, 1);
	return NULL;
}

RL_TIMED static int SIDE(ask)(struct shared *shared, struct outcome *outcome)
{
	struct side *me = &shared->side[0];
	int error = receive(shared, 0);
	int64_t start_ns;

	if (!error)
		error = shared->side[1].error;
	if (!error)
		error = enter(shared, 0);
	if (error)
		return error;
	shared->number = 0;
	getrusage(RUSAGE_THREAD, &me->before);
	start_ns = now_ns();
	RL_LAYOUT_PAD();
	for (uint64_t turn = 0; !error && turn < shared->job.turns; turn++) {
		error = send(shared, 0);
		if (!error)
			error = receive(shared, 0);
	}
	outcome->elapsed_ns = now_ns() - start_ns;
	getrusage(RUSAGE_THREAD, &me->after);
	return error ? error : leave(shared, 0);
}
