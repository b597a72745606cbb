// SPDX-License-Identifier: GPL-2.0
/* shutdown() while connect() waits for an answer. */
#include "repro.h"

static struct sockaddr_in address;

static void *stopper(void *client)
{
	usleep(300000);
	shutdown(*(int *)client, SHUT_RDWR);
	return NULL;
}

static void blocking(int protocol, char *result)
{
	int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	pthread_t thread;

	repro_silent(&address);
	pthread_create(&thread, NULL, stopper, &client);
	sprintf(result, "connect() %s", repro_value(repro_connect(client, &address)));
}

static void not_blocking(int protocol, char *result)
{
	int client = NEED(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, protocol));

	repro_silent(&address);
	repro_add(result, repro_value(repro_connect(client, &address)));
	usleep(100000);
	repro_add(result, repro_value(shutdown(client, SHUT_RDWR)));
	usleep(300000);
	repro_add(result, repro_kept_error(client));
}

static const struct repro_case cases[] = {
	{ "shutdown() while a thread is in connect()", "connect() ECONNRESET", NULL, blocking, 3 },
	{ "connect() without blocking, shutdown(), SO_ERROR", "EINPROGRESS, 0, ECONNRESET", NULL, not_blocking, 3 },
};

REPRO_MAIN(cases)
