/* The tracepoint of traced.c: one event with one number. LTTng's headers include this file more than once. */
#undef LTTNG_UST_TRACEPOINT_PROVIDER
#define LTTNG_UST_TRACEPOINT_PROVIDER rseqlab_traced

#undef LTTNG_UST_TRACEPOINT_INCLUDE
#define LTTNG_UST_TRACEPOINT_INCLUDE "traced.h"

#if !defined(TRACED_H) || defined(LTTNG_UST_TRACEPOINT_HEADER_MULTI_READ)
#define TRACED_H
#include <lttng/tracepoint.h>

LTTNG_UST_TRACEPOINT_EVENT(rseqlab_traced, number, LTTNG_UST_TP_ARGS(unsigned long, number),
			   LTTNG_UST_TP_FIELDS(lttng_ust_field_integer(unsigned long, number, number)))
#endif

#include <lttng/tracepoint-event.h>
