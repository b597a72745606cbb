/* SPDX-License-Identifier: GPL-2.0 */
/* What the reproducers share. Each runs some cases over TCP, then over SMC-D, both to 127.0.0.1: over TCP, which is the
 * control, the result must be the one that is written in the case; over SMC-D it should be. Root is needed to add a
 * UEID, and a kernel with SMC, SMC_DIAG and DIBS_LO. Exit status: 0 if SMC-D does what TCP does, 1 if not, 2 if the
 * control failed, or the connection was none of SMC-D's.
 */
#ifndef REPRO_H
#define REPRO_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/genetlink.h>
#include <linux/netlink.h>
#include <linux/smc.h>
#include <linux/smc_diag.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <net/if.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef IPPROTO_SMC
#define IPPROTO_SMC 256
#endif

struct repro_case {
	const char *what;
	/* what comes out over TCP */
	const char *tcp;
	/* what should come out over SMC-D, if that cannot be the same */
	const char *smc;
	/* writes what came out into result, which has REPRO_RESULT bytes */
	void (*run)(int protocol, char *result);
	/* after which it counts as a hang; 10 if it is 0 */
	int seconds;
};

#define REPRO_RESULT 256

static inline void repro_fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fprintf(stderr, "cannot run: ");
	vfprintf(stderr, format, arguments);
	fprintf(stderr, " (%s)\n", strerror(errno));
	va_end(arguments);
	exit(2);
}

/* for calls that must succeed */
#define NEED(call) ({ \
	__auto_type value_ = (call); \
	if (value_ < 0) \
		repro_fail("line %d: %s", __LINE__, #call); \
	value_; })

static inline const char *repro_error(int error)
{
	return error ? strerrorname_np(error) : "0";
}

/* a call's value, or its error */
static inline const char *repro_value(long value)
{
	static char text[4][32];
	static int at;

	if (value < 0)
		return repro_error(errno);
	at = (at + 1) % 4;
	snprintf(text[at], sizeof(text[at]), "%ld", value);
	return text[at];
}

static inline double repro_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

static inline int repro_set(int fd, int level, int name, int value)
{
	return setsockopt(fd, level, name, &value, sizeof(value));
}

/* a socket with an address of its own. As long as nobody listens there connections are refused. */
static inline int repro_bound(int protocol, struct sockaddr_in *address)
{
	socklen_t length = sizeof(*address);
	int bound = NEED(socket(AF_INET, SOCK_STREAM, protocol));

	memset(address, 0, sizeof(*address));
	address->sin_family = AF_INET;
	address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	NEED(bind(bound, (struct sockaddr *)address, length));
	NEED(getsockname(bound, (struct sockaddr *)address, &length));
	return bound;
}

static inline int repro_listen(int protocol, struct sockaddr_in *address)
{
	int listener = repro_bound(protocol, address);

	NEED(listen(listener, 16));
	return listener;
}

/* the mode of a connection as SMC_DIAG has it, or -1 */
static inline int repro_mode(int fd)
{
	struct {
		struct nlmsghdr header;
		struct smc_diag_req request;
	} question = {
		.header.nlmsg_len = sizeof(question),
		.header.nlmsg_type = SOCK_DIAG_BY_FAMILY,
		.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
		.request.diag_family = AF_SMC,
	};
	/* its port is where that of an IPv4 address is */
	struct sockaddr_in6 own;
	socklen_t length = sizeof(own);
	static char answer[1 << 16];
	int diag = NEED(socket(AF_NETLINK, SOCK_RAW, NETLINK_SOCK_DIAG));

	NEED(getsockname(fd, (struct sockaddr *)&own, &length));
	NEED(send(diag, &question, sizeof(question), 0));
	for (;;) {
		struct nlmsghdr *message = (struct nlmsghdr *)answer;
		int left = NEED(recv(diag, answer, sizeof(answer), 0));

		for (; NLMSG_OK(message, left); message = NLMSG_NEXT(message, left)) {
			struct smc_diag_msg *socket = NLMSG_DATA(message);

			if (message->nlmsg_type == NLMSG_DONE || message->nlmsg_type == NLMSG_ERROR) {
				close(diag);
				return -1;
			}
			/* a listener has the same port */
			if (socket->id.idiag_sport != own.sin6_port || !socket->id.idiag_dport)
				continue;
			close(diag);
			return socket->diag_mode;
		}
	}
}

/* ends the program unless the connection is one of SMC-D's */
static inline void repro_insist_on_smcd(int fd)
{
	int mode = repro_mode(fd);

	if (mode != SMC_DIAG_MODE_SMCD)
		repro_fail("the connection is none of SMC-D's: mode %d", mode);
}

/* a connection: the client's end, and the one that was accepted */
static inline void repro_pair(int protocol, int ends[2])
{
	struct sockaddr_in address;
	int listener = repro_listen(protocol, &address);

	ends[0] = NEED(socket(AF_INET, SOCK_STREAM, protocol));
	NEED(connect(ends[0], (struct sockaddr *)&address, sizeof(address)));
	ends[1] = NEED(accept(listener, NULL, NULL));
	close(listener);
	if (protocol == IPPROTO_SMC) {
		repro_insist_on_smcd(ends[0]);
		repro_insist_on_smcd(ends[1]);
	}
}

static inline int repro_connect(int fd, const struct sockaddr_in *address)
{
	return connect(fd, (const struct sockaddr *)address, sizeof(*address));
}

/* adds what a call gave to a result */
static inline void repro_add(char *result, const char *value)
{
	sprintf(result + strlen(result), "%s%s", *result ? ", " : "", value);
}

/* the error that a socket keeps */
static inline const char *repro_kept_error(int fd)
{
	socklen_t length = sizeof(int);
	int error;

	NEED(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length));
	return repro_error(error);
}

/* has close() reset the connection */
static inline void repro_no_linger(int fd)
{
	const struct linger none = { .l_onoff = 1, .l_linger = 0 };

	NEED(setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof(none)));
}

/* fills the queue of a listener, which drops every SYN then; returns how many are in it */
static inline int repro_fill(int listener, const struct sockaddr_in *address)
{
	int filled;

	NEED(listen(listener, 0));
	for (filled = 0; filled < 8; filled++) {
		struct pollfd writable = { .events = POLLOUT };

		writable.fd = NEED(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0));
		repro_connect(writable.fd, address);
		if (!poll(&writable, 1, 200))
			return filled + 1;
	}
	repro_fail("every connection gets an answer");
	return -1;
}

/* an address that never answers */
static inline void repro_silent(struct sockaddr_in *address)
{
	repro_fill(repro_bound(0, address), address);
}

/* takes the loopback interface up or down */
static inline void repro_loopback(int up)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = up ? IFF_UP : 0 };
	int any = NEED(socket(AF_INET, SOCK_DGRAM, 0));

	NEED(ioctl(any, SIOCSIFFLAGS, &request));
	close(any);
}

/* a network namespace of the process's own, with its loopback interface up */
static inline void repro_own_network(void)
{
	NEED(unshare(CLONE_NEWNET));
	repro_loopback(1);
}

/* has a connection end some three seconds after its peer's system has fallen silent */
static inline void repro_keep_alive(int fd)
{
	NEED(repro_set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 1));
	NEED(repro_set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 1));
	NEED(repro_set(fd, IPPROTO_TCP, TCP_KEEPCNT, 2));
	NEED(repro_set(fd, SOL_SOCKET, SO_KEEPALIVE, 1));
}

/* what poll() says of a descriptor: the names of its events */
static inline const char *repro_poll(int fd, int milliseconds)
{
	struct pollfd polled = { .fd = fd, .events = POLLIN | POLLOUT | POLLRDHUP };
	static char text[64];
	short events;

	NEED(poll(&polled, 1, milliseconds));
	events = polled.revents;
	snprintf(text, sizeof(text), "%s%s%s%s%s", events & POLLIN ? "IN " : "", events & POLLOUT ? "OUT " : "",
		 events & POLLERR ? "ERR " : "", events & POLLHUP ? "HUP " : "", events & POLLRDHUP ? "RDHUP " : "");
	if (!*text)
		return "0";
	text[strlen(text) - 1] = 0;
	return text;
}

/* an attribute of a netlink message, or NULL */
static inline struct nlattr *repro_attribute(void *at, int length, int type)
{
	struct nlattr *attribute = at;

	while (length >= NLA_HDRLEN && attribute->nla_len >= NLA_HDRLEN) {
		if ((attribute->nla_type & NLA_TYPE_MASK) == type)
			return attribute;
		length -= NLA_ALIGN(attribute->nla_len);
		attribute = (struct nlattr *)((char *)attribute + NLA_ALIGN(attribute->nla_len));
	}
	return NULL;
}

/* one request to a generic netlink family, with an attribute unless value is NULL, and the attributes of its answer, which
 * are in a buffer of this function's: NULL if it is an error
 */
static inline void *repro_generic(int family, int command, int flags, int attribute, const void *value, int length,
				  int *answered)
{
	static struct {
		struct nlmsghdr header;
		struct genlmsghdr generic;
		char attributes[4096];
	} message;
	struct nlattr *first = (struct nlattr *)message.attributes;
	int netlink = NEED(socket(AF_NETLINK, SOCK_RAW, NETLINK_GENERIC));

	memset(&message, 0, sizeof(message));
	message.header.nlmsg_len = NLMSG_LENGTH(GENL_HDRLEN);
	message.header.nlmsg_type = family;
	message.header.nlmsg_flags = NLM_F_REQUEST | flags;
	message.generic.cmd = command;
	message.generic.version = 1;
	if (value) {
		message.header.nlmsg_len += NLA_HDRLEN + NLA_ALIGN(length);
		first->nla_type = attribute;
		first->nla_len = NLA_HDRLEN + length;
		memcpy(first + 1, value, length);
	}
	NEED(send(netlink, &message, message.header.nlmsg_len, 0));
	NEED(recv(netlink, &message, sizeof(message), 0));
	close(netlink);
	*answered = message.header.nlmsg_len - NLMSG_LENGTH(GENL_HDRLEN);
	return message.header.nlmsg_type == NLMSG_ERROR ? NULL : message.attributes;
}

/* the number of the family of SMC's */
static inline int repro_smc_family(void)
{
	const char *name = SMC_GENL_FAMILY_NAME;
	int length;
	void *answer = repro_generic(GENL_ID_CTRL, CTRL_CMD_GETFAMILY, NLM_F_ACK, CTRL_ATTR_FAMILY_NAME, name,
				     strlen(name) + 1, &length);
	struct nlattr *number = answer ? repro_attribute(answer, length, CTRL_ATTR_FAMILY_ID) : NULL;

	if (!number)
		repro_fail("the kernel has no SMC");
	return *(__u16 *)(number + 1);
}

/* adds the UEID that SMC-Dv2 needs, unless it is there */
static inline void repro_add_ueid(void)
{
	char ueid[SMC_MAX_EID_LEN + 1];
	int length;

	memset(ueid, ' ', SMC_MAX_EID_LEN);
	memcpy(ueid, "REPRODUCER", 10);
	ueid[SMC_MAX_EID_LEN] = 0;
	/* an error is seen by the connections: they fall back */
	repro_generic(repro_smc_family(), SMC_NETLINK_ADD_UEID, NLM_F_ACK, SMC_NLA_EID_TABLE_ENTRY, ueid, sizeof(ueid),
		      &length);
}

/* SMC_NLA_STATS_T_RX_RMB_USAGE, which the headers of older systems do not have */
#define REPRO_RX_RMB_USAGE 20

/* how many bytes of receive buffers SMC-D's connections of this network namespace have */
static inline long repro_buffers_in_use(void)
{
	static const int path[] = { SMC_GEN_STATS, SMC_NLA_STATS_SMCD_TECH, REPRO_RX_RMB_USAGE };
	int length;
	void *at = repro_generic(repro_smc_family(), SMC_NETLINK_GET_STATS, NLM_F_DUMP, 0, NULL, 0, &length);
	size_t depth;

	for (depth = 0; at && depth < sizeof(path) / sizeof(path[0]); depth++) {
		struct nlattr *found = repro_attribute(at, length, path[depth]);

		at = found ? found + 1 : NULL;
		length = found ? found->nla_len - NLA_HDRLEN : 0;
	}
	if (!at)
		repro_fail("the kernel does not tell the memory of buffers");
	return length == 8 ? *(__u64 *)at : *(__u32 *)at;
}

/* the next connection of a listener, or -1 if none comes; poll() tells of some that accept() does not give */
static inline int repro_accept(int listener)
{
	struct pollfd readable = { .fd = listener, .events = POLLIN };

	NEED(fcntl(listener, F_SETFL, O_NONBLOCK));
	if (poll(&readable, 1, 500) != 1)
		return -1;
	return accept(listener, NULL, NULL);
}

/* differs from before if the kernel has warned since */
static inline long repro_complaints(void)
{
	FILE *tainted = fopen("/proc/sys/kernel/tainted", "r");
	long flags;

	if (!tainted || fscanf(tainted, "%ld", &flags) != 1)
		repro_fail("/proc/sys/kernel/tainted");
	fclose(tainted);
	return flags;
}

/* runs a case in a process of its own: 0, or 2 if it could not run */
static inline int repro_run(const struct repro_case *tried, int protocol, char *result)
{
	struct pollfd readable = { .events = POLLIN };
	int answer[2], status;
	pid_t child;

	NEED(pipe(answer));
	child = NEED(fork());
	if (!child) {
		setpgid(0, 0);
		memset(result, 0, REPRO_RESULT);
		tried->run(protocol, result);
		NEED(write(answer[1], result, REPRO_RESULT));
		/* a case may have left children */
		signal(SIGTERM, SIG_IGN);
		kill(0, SIGTERM);
		_exit(0);
	}
	close(answer[1]);
	readable.fd = answer[0];
	strcpy(result, "hangs");
	if (poll(&readable, 1, 1000 * (tried->seconds ? : 10)) == 1 &&
	    read(answer[0], result, REPRO_RESULT) != REPRO_RESULT) {
		waitpid(child, &status, 0);
		snprintf(result, REPRO_RESULT, "ended with status %x", status);
		close(answer[0]);
		return WIFEXITED(status) && WEXITSTATUS(status) == 2 ? 2 : 0;
	}
	kill(-child, SIGKILL);
	waitpid(child, &status, 0);
	close(answer[0]);
	return 0;
}

static inline int repro_main(const struct repro_case *cases, int count)
{
	int outcome = 0, at;

	setvbuf(stdout, NULL, _IONBF, 0);
	if (!getenv("TCP_ONLY"))
		repro_add_ueid();
	for (at = 0; at < count; at++) {
		const struct repro_case *tried = &cases[at];
		const char *wanted = tried->smc ? : tried->tcp;
		char result[REPRO_RESULT];

		printf("%s\n", tried->what);
		if (repro_run(tried, IPPROTO_TCP, result))
			return 2;
		printf("  TCP:   %s\n", result);
		if (strcmp(result, tried->tcp)) {
			printf("  the control failed: TCP should give: %s\n", tried->tcp);
			return 2;
		}
		if (getenv("TCP_ONLY"))
			continue;
		if (repro_run(tried, IPPROTO_SMC, result))
			return 2;
		printf("  SMC-D: %s\n", result);
		if (strcmp(result, wanted)) {
			printf("  WRONG, should be: %s\n", wanted);
			outcome = 1;
		}
	}
	return outcome;
}

#define REPRO_MAIN(cases) \
	int main(void) \
	{ \
		return repro_main(cases, sizeof(cases) / sizeof(cases[0])); \
	}

#endif
