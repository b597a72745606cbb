// SPDX-License-Identifier: GPL-2.0
/* A stream's last data and its end are written while an earlier message is handled. The reader must get all of it.
 * The window is a few nanoseconds wide, and with dibs loopback there is none, because a message is handled while the
 * sender has its socket's lock. 0009-delay.diff for the kernel makes it wide, and then most connections meet it.
 */
#include "repro.h"

#include <sched.h>
#include <stdatomic.h>

#define ROUNDS 200

static atomic_int begun, sent;
static int client;

static void on_processor(int number)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(number, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

/* from the other processor: SMC handles what was sent on the sender's */
static void *finisher(void *unused)
{
	on_processor(1);
	while (!begun)
		;
	sent += NEED(send(client, "2", 1, 0));
	shutdown(client, SHUT_WR);
	return unused;
}

static void *starter(void *unused)
{
	on_processor(0);
	begun = 1;
	/* the other one may have been faster */
	sent += send(client, "1", 1, MSG_NOSIGNAL) == 1;
	return unused;
}

static void all_of_it(int protocol, char *result)
{
	int round, ends[2], cut = 0;
	pthread_t first, second;

	for (round = 0; round < ROUNDS; round++) {
		int received = 0;
		ssize_t done;
		char data[2];

		repro_pair(protocol, ends);
		client = ends[0];
		begun = 0;
		sent = 0;
		pthread_create(&second, NULL, finisher, NULL);
		usleep(1000);
		pthread_create(&first, NULL, starter, NULL);
		while ((done = recv(ends[1], data, sizeof(data), 0)) > 0)
			received += done;
		pthread_join(first, NULL);
		pthread_join(second, NULL);
		cut += received < sent;
		close(ends[0]);
		close(ends[1]);
	}
	sprintf(result, "%s", cut ? "cut off" : "all of it");
	if (cut)
		fprintf(stderr, "%d of %d were cut off\n", cut, ROUNDS);
}

static const struct repro_case cases[] = {
	{ "what is read of two bytes and the end", "all of it", NULL, all_of_it, 60 },
};

REPRO_MAIN(cases)
