// SPDX-License-Identifier: GPL-2.0
/* A program sends with MSG_MORE, or corked, and exits. */
#include "repro.h"

static void sent_and_exited(int protocol, int cork, int flags, char *result)
{
	int ends[2], status;
	char data[16];
	pid_t child;

	repro_pair(protocol, ends);
	child = NEED(fork());
	if (!child) {
		close(ends[1]);
		NEED(repro_set(ends[0], IPPROTO_TCP, TCP_CORK, cork));
		NEED(send(ends[0], "all of it", 9, flags));
		_exit(0);
	}
	close(ends[0]);
	waitpid(child, &status, 0);
	sprintf(result, "%s", repro_value(recv(ends[1], data, sizeof(data), 0)));
	sprintf(result + strlen(result), ", then %s", repro_value(recv(ends[1], data, sizeof(data), 0)));
}

static void with_msg_more(int protocol, char *result)
{
	sent_and_exited(protocol, 0, MSG_MORE, result);
}

static void with_cork(int protocol, char *result)
{
	sent_and_exited(protocol, 1, 0, result);
}

static const struct repro_case cases[] = {
	{ "what arrives of nine bytes sent with MSG_MORE", "9, then 0", NULL, with_msg_more, 0 },
	{ "what arrives of nine bytes sent with TCP_CORK", "9, then 0", NULL, with_cork, 0 },
};

REPRO_MAIN(cases)
