// SPDX-License-Identifier: GPL-2.0
/* What send() returns if not everything fits at once. */
#include "repro.h"

#define LARGE 8000000

static char data[LARGE];

/* reads until the end, with a pause first */
static void *slow_reader(void *end)
{
	static char received[1 << 16];

	usleep(300000);
	while (recv(*(int *)end, received, sizeof(received), 0) > 0)
		;
	return NULL;
}

static void blocking(int protocol, char *result)
{
	pthread_t reader;
	int ends[2];

	repro_pair(protocol, ends);
	pthread_create(&reader, NULL, slow_reader, &ends[1]);
	sprintf(result, "%s", repro_value(send(ends[0], data, LARGE, 0)));
}

static const char *part(long sent)
{
	return sent < 0 ? repro_error(errno) : sent && sent < LARGE ? "a part" : "not a part";
}

static void not_blocking(int protocol, char *result)
{
	struct pollfd writable = { .events = POLLOUT };
	const char *first, *second;
	pthread_t reader;
	int ends[2], tries;

	repro_pair(protocol, ends);
	first = part(send(ends[0], data, LARGE, MSG_DONTWAIT));
	writable.fd = ends[0];
	/* TCP's buffers grow for a while */
	for (tries = 0; tries < 10; tries++) {
		if (send(ends[0], data, LARGE, MSG_DONTWAIT) > 0)
			tries = 0;
		usleep(50000);
	}
	second = part(send(ends[0], data, LARGE, MSG_DONTWAIT));
	pthread_create(&reader, NULL, slow_reader, &ends[1]);
	sprintf(result, "%s, %s, poll() %d", first, second, poll(&writable, 1, 5000));
}

static void with_timeout(int protocol, char *result)
{
	struct timeval timeout = { .tv_sec = 1 };
	double begin, took;
	const char *sent;
	int ends[2];

	repro_pair(protocol, ends);
	NEED(setsockopt(ends[0], SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)));
	begin = repro_now();
	sent = part(send(ends[0], data, LARGE, 0));
	took = repro_now() - begin;
	sprintf(result, "%s%s", sent, took < 0.9 ? ", at once" : took < 3 ? ", after 1 s" : ", later");
}

static void nothing(int signal)
{
	(void)signal;
}

static void with_signal(int protocol, char *result)
{
	struct sigaction action = { .sa_handler = nothing };
	double begin, took;
	const char *sent;
	int ends[2];

	repro_pair(protocol, ends);
	sigaction(SIGALRM, &action, NULL);
	alarm(1);
	begin = repro_now();
	sent = part(send(ends[0], data, LARGE, 0));
	took = repro_now() - begin;
	sprintf(result, "%s%s", sent, took < 0.9 ? ", at once" : took < 3 ? ", after 1 s" : ", later");
}

static const struct repro_case cases[] = {
	{ "send() of 8000000 bytes to a slow reader", "8000000", NULL, blocking, 30 },
	{ "with MSG_DONTWAIT and no reader, once and when all is full; then there is a reader",
	  "a part, EAGAIN, poll() 1", NULL, not_blocking, 0 },
	{ "with SO_SNDTIMEO of one second and no reader", "a part, after 1 s", NULL, with_timeout, 0 },
	{ "with a signal after one second and no reader", "a part, after 1 s", NULL, with_signal, 0 },
};

REPRO_MAIN(cases)
