// SPDX-License-Identifier: GPL-2.0
/* A proxy splices a connection into a pipe, and the pipe into a TCP connection whose reader is slow. Every byte has to
 * arrive as it was sent.
 */
#include "repro.h"

#define TOTAL (8 << 20)

static unsigned char byte_at(size_t position)
{
	return (position * 2654435761u) >> 24;
}

static void *send_all(void *end)
{
	static unsigned char data[1 << 16];
	int fd = *(int *)end;
	size_t sent, at;
	ssize_t done;

	for (sent = 0; sent < TOTAL; sent += done) {
		size_t length = TOTAL - sent < sizeof(data) ? TOTAL - sent : sizeof(data);

		for (at = 0; at < length; at++)
			data[at] = byte_at(sent + at);
		done = NEED(send(fd, data, length, 0));
	}
	shutdown(fd, SHUT_WR);
	return NULL;
}

static void *proxy(void *ends)
{
	int from = ((int *)ends)[0], to = ((int *)ends)[1], through[2];
	ssize_t in, out;

	NEED(pipe(through));
	while ((in = NEED(splice(from, NULL, through[1], NULL, 1 << 16, 0))) > 0)
		for (; in; in -= out)
			out = NEED(splice(through[0], NULL, to, NULL, in, 0));
	shutdown(to, SHUT_WR);
	return NULL;
}

static void splice_to_tcp(int protocol, char *result)
{
	static unsigned char data[1 << 16];
	int in[2], out[2], proxied[2];
	size_t received = 0, at;
	pthread_t sender, splicer;
	ssize_t done;

	repro_pair(protocol, in);
	repro_pair(IPPROTO_TCP, out);
	proxied[0] = in[1];
	proxied[1] = out[0];
	pthread_create(&sender, NULL, send_all, &in[0]);
	pthread_create(&splicer, NULL, proxy, proxied);
	/* what the proxy has spliced waits in TCP's send queue */
	sleep(1);
	while ((done = NEED(recv(out[1], data, sizeof(data), 0))) > 0) {
		for (at = 0; at < (size_t)done; at++)
			if (data[at] != byte_at(received + at)) {
				sprintf(result, "wrong from byte %zu on", received + at);
				return;
			}
		received += done;
	}
	sprintf(result, "%zu bytes, as they were sent", received);
}

static void tee_it(int protocol, char *result)
{
	int ends[2], first[2], second[2];

	repro_pair(protocol, ends);
	NEED(pipe(first));
	NEED(pipe(second));
	NEED(send(ends[0], "0123456789", 10, 0));
	NEED(splice(ends[1], NULL, first[1], NULL, 10, 0));
	sprintf(result, "%s", repro_value(tee(first[0], second[1], 10, 0)));
}

static const struct repro_case cases[] = {
	{ "8 MiB spliced from a connection to a TCP connection with a slow reader",
	  "8388608 bytes, as they were sent", NULL, splice_to_tcp, 60 },
	{ "tee() of ten bytes that were spliced into a pipe", "10", NULL, tee_it, 0 },
};

REPRO_MAIN(cases)
