// SPDX-License-Identifier: GPL-2.0
/* What a reader sees if the peer does not close in good order. */
#include "repro.h"

static void read_all(int fd, char *result)
{
	char data[16];

	/* let the reset come first */
	usleep(100000);
	sprintf(result, "%s", repro_value(recv(fd, data, sizeof(data), 0)));
	sprintf(result + strlen(result), ", then %s", repro_value(recv(fd, data, sizeof(data), 0)));
	sprintf(result + strlen(result), ", then %s", repro_value(recv(fd, data, sizeof(data), 0)));
}

static void no_linger(int protocol, char *result)
{
	int ends[2];

	repro_pair(protocol, ends);
	NEED(send(ends[1], "part", 4, 0));
	usleep(100000);
	repro_no_linger(ends[1]);
	close(ends[1]);
	read_all(ends[0], result);
}

static void after_shutdown(int protocol, char *result)
{
	int ends[2];

	repro_pair(protocol, ends);
	NEED(send(ends[1], "part", 4, 0));
	repro_no_linger(ends[1]);
	NEED(shutdown(ends[1], SHUT_RDWR));
	read_all(ends[0], result);
}

static void with_time(int protocol, char *result)
{
	static const struct linger five = { .l_onoff = 1, .l_linger = 5 };
	int ends[2];

	repro_pair(protocol, ends);
	NEED(send(ends[1], "part", 4, 0));
	NEED(setsockopt(ends[1], SOL_SOCKET, SO_LINGER, &five, sizeof(five)));
	close(ends[1]);
	read_all(ends[0], result);
}

static void *closer(void *end)
{
	usleep(200000);
	repro_no_linger(*(int *)end);
	close(*(int *)end);
	return NULL;
}

static void while_reading(int protocol, char *result)
{
	pthread_t thread;
	char data[16];
	int ends[2];

	repro_pair(protocol, ends);
	pthread_create(&thread, NULL, closer, &ends[1]);
	sprintf(result, "%s", repro_value(recv(ends[0], data, sizeof(data), 0)));
}

static const struct repro_case cases[] = {
	{ "four bytes, then close() with SO_LINGER { 1, 0 }", "4, then ECONNRESET, then 0", NULL, no_linger, 0 },
	{ "the same while the reader waits", "ECONNRESET", NULL, while_reading, 0 },
	{ "four bytes, then shutdown(SHUT_RDWR) with SO_LINGER { 1, 0 }", "4, then 0, then 0", NULL, after_shutdown, 0 },
	{ "four bytes, then close() with SO_LINGER { 1, 5 }", "4, then 0, then 0", NULL, with_time, 0 },
};

REPRO_MAIN(cases)
