// SPDX-License-Identifier: GPL-2.0
/* What send() gives, and whether there is a SIGPIPE, when the peer has gone. */
#include "repro.h"

static volatile sig_atomic_t signals;

static void count(int signal)
{
	(void)signal;
	signals++;
}

static void send_twice(int fd, int flags, char *result)
{
	int round;

	signal(SIGPIPE, count);
	for (round = 0; round < 2; round++) {
		signals = 0;
		sprintf(result + strlen(result), "%s%s", round ? ", then " : "", repro_value(send(fd, "data", 4, flags)));
		if (signals)
			strcat(result, " and SIGPIPE");
		usleep(100000);
	}
}

static void closed(int protocol, char *result)
{
	int ends[2];

	repro_pair(protocol, ends);
	close(ends[1]);
	usleep(100000);
	send_twice(ends[0], 0, result);
}

static void no_signal(int protocol, char *result)
{
	int ends[2];

	repro_pair(protocol, ends);
	close(ends[1]);
	usleep(100000);
	send_twice(ends[0], MSG_NOSIGNAL, result);
}

static void reset(int protocol, char *result)
{
	int ends[2];

	repro_pair(protocol, ends);
	NEED(send(ends[0], "not read", 8, 0));
	usleep(100000);
	close(ends[1]);
	usleep(100000);
	send_twice(ends[0], 0, result);
}

static void own_shutdown(int protocol, char *result)
{
	int ends[2];

	repro_pair(protocol, ends);
	NEED(shutdown(ends[0], SHUT_WR));
	send_twice(ends[0], 0, result);
}

static void *closer(void *end)
{
	usleep(500000);
	close(*(int *)end);
	return NULL;
}

/* fills the buffers, and waits */
static void while_sending(int protocol, char *result)
{
	static char data[8000000];
	pthread_t thread;
	int ends[2];

	repro_pair(protocol, ends);
	pthread_create(&thread, NULL, closer, &ends[1]);
	while (send(ends[0], data, sizeof(data), MSG_NOSIGNAL) > 0)
		;
	sprintf(result, "%s, then ", repro_error(errno));
	send_twice(ends[0], 0, result);
}

static const struct repro_case cases[] = {
	{ "two send() after the peer has closed", "4, then EPIPE and SIGPIPE",
	  "EPIPE and SIGPIPE, then EPIPE and SIGPIPE", closed, 0 },
	{ "with MSG_NOSIGNAL", "4, then EPIPE", "EPIPE, then EPIPE", no_signal, 0 },
	{ "after the peer has closed with unread data", "ECONNRESET, then EPIPE and SIGPIPE", NULL, reset, 0 },
	{ "after shutdown(SHUT_WR)", "EPIPE and SIGPIPE, then EPIPE and SIGPIPE", NULL, own_shutdown, 0 },
	{ "while the peer closes with unread data",
	  "ECONNRESET, then EPIPE and SIGPIPE, then EPIPE and SIGPIPE", NULL, while_sending, 0 },
};

REPRO_MAIN(cases)
