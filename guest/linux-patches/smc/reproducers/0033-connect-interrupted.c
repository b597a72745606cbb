// SPDX-License-Identifier: GPL-2.0
/* A signal ends connect() before there is an answer; then one comes, and poll() has to tell. */
#include "repro.h"

static void nothing(int signal)
{
	(void)signal;
}

/* a listener whose queue is full: it answers when one is accepted */
static void interrupted(int protocol, char *result)
{
	const struct sigaction action = { .sa_handler = nothing };
	struct sockaddr_in address;
	int listener, client, filled;

	listener = repro_bound(protocol, &address);
	filled = repro_fill(listener, &address);
	client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	NEED(sigaction(SIGALRM, &action, NULL));
	alarm(1);
	repro_add(result, repro_value(repro_connect(client, &address)));
	while (filled--)
		NEED(accept(listener, NULL, NULL));
	repro_add(result, repro_poll(client, 8000));
	repro_add(result, repro_kept_error(client));
	repro_add(result, repro_value(send(client, "x", 1, MSG_NOSIGNAL)));
}

static const struct repro_case cases[] = {
	{ "connect(), a signal, an answer, poll(), SO_ERROR, send()", "EINTR, OUT, 0, 1", NULL, interrupted, 20 },
};

REPRO_MAIN(cases)
