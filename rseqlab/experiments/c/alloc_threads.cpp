/*
 * Allocates in one thread and frees in the next, with new and delete and nothing else.
 *
 * Usage: alloc_threads THREADS BLOCKS. The threads form a ring; each allocates BLOCKS blocks of 16 to 1024 bytes,
 * hands them on by a queue and frees what the thread before it handed over, after looking at what stands in it.
 * Prints `operations=... elapsed_ns=...`; a block lost or spoilt is an error.
 */
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr std::size_t slots = 1024;

struct alignas(128) Queue {
	std::atomic<unsigned long *> slot[slots] = {};
};

struct alignas(128) Tally {
	unsigned long freed = 0, spoilt = 0;
};

void turn(Queue &out, Queue &in, unsigned long blocks, Tally &tally)
{
	unsigned long sent = 0, received = 0, state = 88172645463325252ul;

	while (sent < blocks || received < blocks) {
		for (int burst = 0; burst < 64 && sent < blocks; burst++) {
			auto &place = out.slot[sent % slots];
			if (place.load(std::memory_order_acquire))
				break;
			state ^= state << 13, state ^= state >> 7, state ^= state << 17;
			auto words = 2 + state % 127;
			auto block = new unsigned long[words];
			block[0] = sent, block[words - 1] = sent;
			place.store(block, std::memory_order_release);
			sent++;
		}
		auto before = received;
		while (received < blocks) {
			auto &place = in.slot[received % slots];
			auto block = place.load(std::memory_order_acquire);
			if (!block)
				break;
			tally.spoilt += block[0] != received;
			delete[] block;
			place.store(nullptr, std::memory_order_release);
			received++;
		}
		if (before == received)
			std::this_thread::yield();
	}
	tally.freed = received;
}

} // namespace

int main(int count, char **words)
{
	if (count != 3)
		return std::fprintf(stderr, "usage: alloc_threads THREADS BLOCKS\n"), 2;
	auto threads = std::strtoul(words[1], nullptr, 10), blocks = std::strtoul(words[2], nullptr, 10);
	std::vector<Queue> queues(threads);
	std::vector<Tally> tallies(threads);
	std::vector<std::thread> all;
	auto start = std::chrono::steady_clock::now();

	for (unsigned long i = 0; i < threads; i++)
		all.emplace_back(turn, std::ref(queues[i]), std::ref(queues[(i + threads - 1) % threads]), blocks,
				 std::ref(tallies[i]));
	for (auto &thread : all)
		thread.join();
	std::chrono::nanoseconds elapsed = std::chrono::steady_clock::now() - start;
	unsigned long freed = 0, spoilt = 0;
	for (auto &tally : tallies)
		freed += tally.freed, spoilt += tally.spoilt;
	if (freed != threads * blocks || spoilt)
		return std::fprintf(stderr, "%lu of %lu blocks arrived, %lu spoilt\n", freed, threads * blocks, spoilt), 1;
	std::printf("operations=%lu elapsed_ns=%lld\n", freed, static_cast<long long>(elapsed.count()));
	return 0;
}
