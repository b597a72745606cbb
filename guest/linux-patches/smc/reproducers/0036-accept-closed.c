// SPDX-License-Identifier: GPL-2.0
/* A connection ends because its peer's system does not answer (0019) before it is accepted. TCP has accept() give it all the
 * same. (0035 is needed to see whether its buffers are given back.)
 */
#include "repro.h"

static void ended(int protocol, char *result)
{
	struct sockaddr_in address;
	int listener, client, accepted;
	char data;

	repro_own_network();
	listener = repro_listen(protocol, &address);
	repro_keep_alive(listener);
	client = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	NEED(repro_connect(client, &address));
	if (protocol == IPPROTO_SMC)
		repro_insist_on_smcd(client);
	usleep(500000);
	repro_loopback(0);
	sleep(6);
	NEED(fcntl(listener, F_SETFL, O_NONBLOCK));
	accepted = accept(listener, NULL, NULL);
	sprintf(result, "accept() %s", accepted < 0 ? repro_error(errno) : "a socket");
	if (accepted >= 0) {
		sprintf(result + strlen(result), ", recv() %s", repro_value(recv(accepted, &data, 1, 0)));
		close(accepted);
	}
	close(client);
	close(listener);
	usleep(300000);
	sprintf(result + strlen(result), ", %ld bytes in use", repro_buffers_in_use());
}

static const struct repro_case cases[] = {
	{ "a connection that times out before it is accepted",
	  "accept() a socket, recv() ETIMEDOUT, 0 bytes in use",
	  "accept() EAGAIN, 0 bytes in use", ended, 20 },
};

REPRO_MAIN(cases)
