// SPDX-License-Identifier: GPL-2.0
/* shutdown() by another thread while recv(), or poll(), waits. */
#include "repro.h"

static int how;

static void *stopper(void *end)
{
	usleep(300000);
	shutdown(*(int *)end, how);
	return NULL;
}

static void stop(int protocol, int shut, char *result)
{
	pthread_t thread;
	int ends[2];
	char data;

	how = shut;
	repro_pair(protocol, ends);
	pthread_create(&thread, NULL, stopper, &ends[0]);
	sprintf(result, "recv() %s", repro_value(recv(ends[0], &data, 1, 0)));
}

static void read_alone(int protocol, char *result)
{
	stop(protocol, SHUT_RD, result);
}

static void read_and_write(int protocol, char *result)
{
	stop(protocol, SHUT_RDWR, result);
}

static void polled(int protocol, char *result)
{
	struct pollfd readable = { .events = POLLIN };
	pthread_t thread;
	int ends[2];

	how = SHUT_RD;
	repro_pair(protocol, ends);
	pthread_create(&thread, NULL, stopper, &ends[0]);
	readable.fd = ends[0];
	sprintf(result, "poll() %s", repro_value(poll(&readable, 1, 3000)));
}

static const struct repro_case cases[] = {
	{ "shutdown(SHUT_RD) while a thread is in recv()", "recv() 0", NULL, read_alone, 0 },
	{ "shutdown(SHUT_RDWR) while a thread is in recv()", "recv() 0", NULL, read_and_write, 0 },
	{ "shutdown(SHUT_RD) while a thread is in poll()", "poll() 1", NULL, polled, 0 },
};

REPRO_MAIN(cases)
