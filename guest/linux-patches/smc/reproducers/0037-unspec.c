// SPDX-License-Identifier: GPL-2.0
/* connect() to an address of AF_UNSPEC. */
#include "repro.h"

static int disconnect(int fd)
{
	const struct sockaddr unspecified = { .sa_family = AF_UNSPEC };

	return connect(fd, &unspecified, sizeof(unspecified));
}

static void *accepting(void *listener)
{
	static char outcome[32];

	strcpy(outcome, repro_value(accept(*(int *)listener, NULL, NULL)));
	return outcome;
}

static void listening(int protocol, char *result)
{
	struct sockaddr_in address;
	int listener = repro_listen(protocol, &address);
	pthread_t thread;
	void *outcome;

	NEED(-pthread_create(&thread, NULL, accepting, &listener));
	usleep(300000);
	repro_add(result, repro_value(disconnect(listener)));
	NEED(-pthread_join(thread, &outcome));
	repro_add(result, outcome);
}

static void unconnected(int protocol, char *result)
{
	struct sockaddr_in address;
	int listener = repro_listen(protocol, &address);
	int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));

	repro_add(result, repro_value(disconnect(client)));
	repro_add(result, repro_value(repro_connect(client, &address)));
	if (protocol == IPPROTO_SMC)
		repro_insist_on_smcd(client);
	close(listener);
}

static const struct repro_case cases[] = {
	{ "a listener that a thread waits at, and accept()", "0, EINVAL", NULL, listening, 0 },
	{ "a socket without connection, which connects then", "0, 0", NULL, unconnected, 0 },
};

REPRO_MAIN(cases)
