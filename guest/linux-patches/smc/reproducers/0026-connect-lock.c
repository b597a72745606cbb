// SPDX-License-Identifier: GPL-2.0
/* What others do to a socket while connect() waits for an answer. */
#include "repro.h"

static struct sockaddr_in address;

static void *connector(void *client)
{
	repro_connect(*(int *)client, &address);
	return NULL;
}

static void option(int protocol, char *result)
{
	int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	pthread_t thread;

	repro_silent(&address);
	pthread_create(&thread, NULL, connector, &client);
	usleep(300000);
	sprintf(result, "setsockopt() %s", repro_value(repro_set(client, IPPROTO_TCP, TCP_NODELAY, 1)));
}

static const struct repro_case cases[] = {
	{ "setsockopt() while a thread is in connect()", "setsockopt() 0", NULL, option, 3 },
};

REPRO_MAIN(cases)
