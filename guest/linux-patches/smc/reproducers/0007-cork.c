// SPDX-License-Identifier: GPL-2.0
/* A program sends a question with MSG_MORE, or corked, and waits for the answer. */
#include "repro.h"

static void answered(int ends[2], char *result)
{
	struct pollfd readable = { .fd = ends[1], .events = POLLIN };
	double begin = repro_now(), took;
	char question[16];

	if (!poll(&readable, 1, 3000)) {
		strcpy(result, "nothing");
		return;
	}
	took = repro_now() - begin;
	sprintf(result, "%s%s", repro_value(recv(ends[1], question, sizeof(question), 0)),
		took < 1 ? ", within a second" : ", later");
}

static void with_msg_more(int protocol, char *result)
{
	int ends[2];

	repro_pair(protocol, ends);
	NEED(send(ends[0], "question", 8, MSG_MORE));
	answered(ends, result);
}

static void with_cork(int protocol, char *result)
{
	int ends[2];

	repro_pair(protocol, ends);
	NEED(repro_set(ends[0], IPPROTO_TCP, TCP_CORK, 1));
	NEED(send(ends[0], "question", 8, 0));
	answered(ends, result);
}

/* the timer must not end the cork itself */
static void twice(int protocol, char *result)
{
	struct pollfd readable = { .events = POLLIN };
	char question[16];
	int ends[2], early;

	repro_pair(protocol, ends);
	NEED(repro_set(ends[0], IPPROTO_TCP, TCP_CORK, 1));
	NEED(send(ends[0], "question", 8, 0));
	NEED(recv(ends[1], question, sizeof(question), 0));
	NEED(send(ends[0], "question", 8, 0));
	readable.fd = ends[1];
	early = poll(&readable, 1, 50);
	sprintf(result, "%s, %s", early ? "at once" : "held back", poll(&readable, 1, 3000) ? "arrives" : "nothing");
}

static const struct repro_case cases[] = {
	{ "what arrives of eight bytes sent with MSG_MORE", "8, within a second", NULL, with_msg_more, 0 },
	{ "what arrives of eight bytes sent with TCP_CORK", "8, within a second", NULL, with_cork, 0 },
	{ "the same once more on the connection that is still corked", "held back, arrives", NULL, twice, 0 },
};

REPRO_MAIN(cases)
