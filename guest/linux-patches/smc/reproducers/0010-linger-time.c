// SPDX-License-Identifier: GPL-2.0
/* SO_LINGER with a time: what a connection that falls back to TCP, and one that is accepted, make of it. */
#include "repro.h"

static const struct linger five = { .l_onoff = 1, .l_linger = 5 };

/* the server has no SMC */
static void fallback(int protocol, char *result)
{
	struct sockaddr_in address;
	int listener = repro_listen(IPPROTO_TCP, &address);
	int client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	int server;
	char data[16];

	NEED(setsockopt(client, SOL_SOCKET, SO_LINGER, &five, sizeof(five)));
	NEED(connect(client, (struct sockaddr *)&address, sizeof(address)));
	server = NEED(accept(listener, NULL, NULL));
	NEED(send(client, "goodbye", 7, 0));
	close(client);
	sprintf(result, "%s", repro_value(recv(server, data, sizeof(data), 0)));
	sprintf(result + strlen(result), ", then %s", repro_value(recv(server, data, sizeof(data), 0)));
}

static void accepted(int protocol, char *result)
{
	struct linger linger = { 0 };
	socklen_t length = sizeof(linger);
	struct sockaddr_in address;
	int listener, client, server;

	listener = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	memset(&address, 0, sizeof(address));
	address.sin_family = AF_INET;
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	NEED(setsockopt(listener, SOL_SOCKET, SO_LINGER, &five, sizeof(five)));
	NEED(bind(listener, (struct sockaddr *)&address, sizeof(address)));
	NEED(listen(listener, 1));
	length = sizeof(address);
	NEED(getsockname(listener, (struct sockaddr *)&address, &length));
	client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	NEED(connect(client, (struct sockaddr *)&address, sizeof(address)));
	server = NEED(accept(listener, NULL, NULL));
	length = sizeof(linger);
	NEED(getsockopt(server, SOL_SOCKET, SO_LINGER, &linger, &length));
	sprintf(result, "{ %d, %d }", linger.l_onoff, linger.l_linger);
}

static const struct repro_case cases[] = {
	{ "SO_LINGER { 1, 5 }, fallback to TCP, seven bytes, close(): what the server reads", "7, then 0", NULL, fallback,
	  0 },
	{ "SO_LINGER { 1, 5 } of a listener: what an accepted socket has", "{ 1, 5 }", NULL, accepted, 0 },
};

REPRO_MAIN(cases)
