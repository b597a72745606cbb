// SPDX-License-Identifier: GPL-2.0
/*
 * A fuzz target: the driver's rings, DMBs and headers in user space, with a
 * peer that writes to the window what it likes, also between two looks of ours.
 *
 * The input is what we do, and what the peer writes when. Nothing outside of the
 * window is touched (address sanitizer), each call ends, and what comes out of
 * it is in its bounds, which are asserted here.
 */

#include "../attach.c"
#include "../dmb.c"
#include "../ring.c"

#define SHIFT		21
#define WINDOW		(1UL << SHIFT)
#define UNITS		(WINDOW / IVPCI_DMB_MIN)
#define HOLDS		8

static const u8 *input;
static size_t left;
static u8 *window;
static u64 turns;
static u64 writes;

static u8 next(void)
{
	if (!left)
		return 0;
	left--;
	return *input++;
}

static u32 next_word(void)
{
	u32 word = next();

	word |= next() << 8;
	word |= next() << 16;
	return word | (u32)next() << 24;
}

static u64 next_long(void)
{
	u64 high = next_word();

	return high << 32 | next_word();
}

/* Where in a control area what the peer writes means something. */
static u32 next_place(void)
{
	static const u32 places[] = {
		offsetof(struct ivpci_ctrl, magic),
		offsetof(struct ivpci_ctrl, version),
		offsetof(struct ivpci_ctrl, epoch),
		offsetof(struct ivpci_ctrl, peer_epoch),
		offsetof(struct ivpci_ctrl, position),
		offsetof(struct ivpci_ctrl, vector),
		offsetof(struct ivpci_ctrl, window_shift),
		offsetof(struct ivpci_ctrl, gid),
		offsetof(struct ivpci_ctrl, gid) + 8,
		offsetof(struct ivpci_ctrl, slots),
		offsetof(struct ivpci_ctrl, tag),
		offsetof(struct ivpci_ctrl, signal_prod),
		offsetof(struct ivpci_ctrl, signal_cons),
		offsetof(struct ivpci_ctrl, signal_wake),
		offsetof(struct ivpci_ctrl, event_prod),
		offsetof(struct ivpci_ctrl, event_cons),
		offsetof(struct ivpci_ctrl, events),
		offsetof(struct ivpci_ctrl, signals),
		offsetof(struct ivpci_ctrl, dir),
		offsetof(struct ivpci_ctrl, dir[0].off),
		offsetof(struct ivpci_ctrl, dir[0].len),
		offsetof(struct ivpci_ctrl, dir[1]),
		offsetof(struct ivpci_ctrl, dir[IVPCI_SLOTS - 1]),
		offsetof(struct ivpci_ctrl, attached),
		offsetof(struct ivpci_ctrl, attached[1]),
	};
	u8 which = next();

	if (which < sizeof(places) / sizeof(places[0]))
		return places[which];
	return (which << 8 | next()) % (IVPCI_CTRL_SIZE - 7) & ~3U;
}

/* The peer can write to both control areas, ours included. */
static void peer_writes(void)
{
	u8 how = next();
	u32 at = next_place() + (how & 1 ? IVPCI_CTRL_SIZE : 0);
	u64 old, word = how & 2 ? next_word() : next();

	memcpy(&old, window + at, sizeof(old));
	if (how & 4)
		word = old + (int8_t)word;
	if (how & 8)
		word |= (u64)next_word() << 32;
	memcpy(window + at, &word, how & 8 ? 8 : 4);
	writes++;
}

/* A byte of 0xf0 or more: it does; of 0xe0 or more: it does not. */
void fuzz_peer(void)
{
	/* No call of the driver looks as often as that. */
	assert(++turns < 100000);
	if (!left || *input < 0xe0)
		return;
	if (next() >= 0xf0)
		peer_writes();
}

struct side {
	struct ivpci_ctrl *own;
	struct ivpci_ctrl *peer;
	struct ivpci_tx tx;
	struct ivpci_rx rx;
	struct ivpci_dmbs dmbs;
	struct ivpci_remotes remotes;
	struct ivpci_remote *held[HOLDS];
	u32 side;
	u8 busy;
};

static struct side s;

static bool busy(struct ivpci_dmbs *dmbs, const struct ivpci_dmb *dmb)
{
	assert(dmbs == &s.dmbs && dmb->state == IVPCI_DMB_RETIRED);
	return s.busy;
}

static void begin(void)
{
	memset(s.own, 0, sizeof(*s.own));
	memset(s.held, 0, sizeof(s.held));
	ivpci_tx_init(&s.tx, s.own, s.peer);
	ivpci_rx_init(&s.rx, s.own, s.peer);
	ivpci_dmbs_begin(&s.dmbs, s.own, s.peer);
	ivpci_remotes_init(&s.remotes, s.own, s.peer, SHIFT, s.side);
}

static void header(void)
{
	struct ivpci_header hdr;
	const char *why = ivpci_read_header(s.peer, SHIFT, &hdr);

	if (why) {
		assert(*why);
		return;
	}
	assert(hdr.epoch && hdr.vector < IVPCI_VECTORS && hdr.tag < IVPCI_LINKS);
	assert(ivpci_gid_valid(&hdr.gid));
}

static void post_signal(void)
{
	u8 low = next();
	u32 slot = (low | next() << 8) % IVPCI_SLOTS;
	u32 index = next() % 16;
	u64 prod = s.tx.prod, before = writes;
	u32 used = (u32)prod - s.peer->signal_cons;
	int posted = ivpci_signal_post(&s.tx, slot, index);

	if (posted == IVPCI_POSTED || posted == IVPCI_RING)
		assert(s.tx.prod == prod + 1);
	else
		assert(s.tx.prod == prod && (posted == IVPCI_COALESCED ||
		       posted == -EBUSY || posted == -EPROTO));
	if (writes != before)
		return;
	/* What there is to take is never more than the ring holds */
	assert((posted == -EPROTO) == (used > IVPCI_SIGNALS));
	assert(posted < IVPCI_POSTED || used < IVPCI_SIGNALS);
	assert(posted != -EBUSY || used == IVPCI_SIGNALS);
}

static void post_event(void)
{
	u32 code = next(), prod = s.tx.event_prod;
	int posted = ivpci_event_post(&s.tx, code, next_word());

	assert(!posted || posted == -EBUSY || posted == -EPROTO);
	assert(s.tx.event_prod == prod + !posted);
}

static void take_signals(void)
{
	u32 most = 1 + next() % 64;
	u32 *signals = malloc(most * sizeof(*signals));
	u32 cons = s.rx.cons;
	u32 posted = s.peer->signal_prod - cons;
	u64 before = writes;
	int taken = ivpci_signal_take(&s.rx, signals, most);

	assert(taken == -EPROTO || (taken >= 0 && (u32)taken <= most));
	assert(s.rx.cons == cons + max(taken, 0));
	if (writes == before)
		assert(taken == (posted > IVPCI_SIGNALS ? -EPROTO :
				 (int)min(posted, most)));
	free(signals);
}

static void take_event(void)
{
	u32 code, cons = s.rx.event_cons;
	u32 posted = s.peer->event_prod - cons;
	u64 info, before = writes;
	int taken = ivpci_event_take(&s.rx, &code, &info);

	assert(taken == 0 || taken == 1 || taken == -EPROTO);
	assert(s.rx.event_cons == cons + (taken == 1));
	if (writes == before)
		assert(taken == (posted > IVPCI_EVENTS ? -EPROTO : !!posted));
}

static void arm(void)
{
	ivpci_rx_arm(&s.rx);
	ivpci_rx_disarm(&s.rx);
}

static void alloc(void)
{
	u8 size = next();
	u32 len = size < 0x80 ? (u32)IVPCI_DMB_MIN << size % 8 : next_word();
	u64 random, token;
	int slot;

	ivpci_dmb_affordable(&s.dmbs, len);
	slot = ivpci_dmb_alloc(&s.dmbs, len);
	if (slot < 0) {
		assert(slot == -EINVAL || slot == -ENOSPC);
		return;
	}
	assert(slot < IVPCI_SLOTS);
	random = next_long();
	token = ivpci_token(random, next() % IVPCI_LINKS, slot);
	assert(ivpci_token_slot(token) == slot);
	if (size & 0x40)
		ivpci_dmb_publish(&s.dmbs, slot, token);
}

static void retire(void)
{
	u32 slot = next() % 16;
	struct ivpci_dmb *dmb = &s.dmbs.slot[slot];
	u64 before = writes;
	bool attached;

	s.busy = next() & 1;
	if (dmb->state != IVPCI_DMB_LIVE)
		return;
	attached = dmb->token && s.peer->attached[slot] == dmb->token;
	ivpci_dmb_retire(&s.dmbs, slot);
	/* What somebody uses is not given to others */
	assert(!s.busy || dmb->state == IVPCI_DMB_RETIRED);
	if (writes == before)
		assert((dmb->state == IVPCI_DMB_RETIRED) == (s.busy || attached));
}

/* Either a token that is in the peer's directory, or any. */
static u64 some_token(void)
{
	u8 which = next();

	if (which < 16)
		return s.peer->dir[which].token;
	if (which < 32)
		return s.peer->dir[IVPCI_SLOTS - 1].token;
	return next_long();
}

static void hold(void)
{
	u8 at = next() % HOLDS;
	u64 token = some_token();
	struct ivpci_remote *found = ivpci_remote_find(&s.remotes, token);
	struct ivpci_remote *remote;

	if (s.held[at]) {
		ivpci_remote_put(&s.remotes, s.held[at]);
		s.held[at] = NULL;
		return;
	}
	remote = ivpci_remote_hold(&s.remotes, token);
	assert(!remote || !found || found == remote);
	if (!remote)
		return;
	assert(remote->token == token && remote->holds);
	assert(ivpci_remote_find(&s.remotes, token) == remote);
	s.held[at] = remote;
}

static void copy(void)
{
	struct ivpci_remote *remote = s.held[next() % HOLDS];
	static const u8 src[256];
	u32 len = next(), off = next_word();

	if (!remote || off > remote->len || len > remote->len - off)
		return;
	ivpci_copy(window + remote->off + off, src, len);
}

static void gids(void)
{
	u32 device[4];
	uuid_t gid;
	unsigned int i;

	for (i = 0; i < 4; i++)
		device[i] = next();
	for (i = 0; i < sizeof(gid.b); i++)
		gid.b[i] = next();
	ivpci_gid_bind(&gid, device);
	assert(ivpci_gid_bound(&gid, device));
	assert(memchr_inv(gid.b, 0, 8));
}

static void backoff(void)
{
	unsigned long last = next_word() % (IVPCI_BACKOFF_MAX + 1);
	bool faulty = next() & 1;
	unsigned long up = next_word();
	unsigned long wait = ivpci_backoff(last, up, faulty);

	assert(wait <= IVPCI_BACKOFF_MAX);
	assert(!faulty || wait >= IVPCI_BACKOFF_FAULT);
	assert(up >= IVPCI_STEADY || wait >= min(last, IVPCI_BACKOFF_MAX));
}

/* What must hold whatever the peer has written. */
static void check(void)
{
	static u8 used[UNITS];
	unsigned int live = 0, retired = 0, held = 0, slot, at;
	u64 first = s.side ? WINDOW / 2 : IVPCI_CTRL_AREAS;
	u64 last = s.side ? WINDOW : WINDOW / 2;

	memset(used, 0, sizeof(used));
	for (slot = 0; slot < IVPCI_SLOTS; slot++) {
		const struct ivpci_dmb *dmb = &s.dmbs.slot[slot];
		u64 unit, off = dmb->off;

		if (dmb->state == IVPCI_DMB_FREE)
			continue;
		live += dmb->state == IVPCI_DMB_LIVE;
		retired += dmb->state == IVPCI_DMB_RETIRED;
		assert(off >= first && off + dmb->len <= last);
		assert(off % dmb->len == 0);
		for (unit = off; unit < off + dmb->len; unit += IVPCI_DMB_MIN) {
			assert(!used[unit / IVPCI_DMB_MIN]);
			used[unit / IVPCI_DMB_MIN] = 1;
		}
	}
	assert(live == s.dmbs.live && retired == s.dmbs.retired);
	for (at = first / IVPCI_DMB_MIN; at < last / IVPCI_DMB_MIN; at++)
		assert(bitmap_test(s.dmbs.map, at) == used[at]);

	/* The peer's half is the other one */
	first = s.side ? IVPCI_CTRL_AREAS : WINDOW / 2;
	last = s.side ? WINDOW / 2 : WINDOW;
	for (slot = 0; slot < IVPCI_SLOTS; slot++) {
		const struct ivpci_remote *remote = &s.remotes.slot[slot];

		if (!remote->holds)
			continue;
		held++;
		assert(remote->holds <= HOLDS);
		assert(ivpci_token_slot(remote->token) == (int)slot);
		assert(remote->len >= IVPCI_DMB_MIN);
		assert(remote->off >= first && remote->off + remote->len <= last);
		assert(remote->off % remote->len == 0);
	}
	assert(held == s.remotes.held);
}

/* A good header, as the peer's driver writes it. */
static void good_header(void)
{
	s.peer->magic = IVPCI_MAGIC;
	s.peer->version = IVPCI_VERSION;
	s.peer->window_shift = SHIFT;
	s.peer->slots = IVPCI_SLOTS;
	memset(&s.peer->gid, 0x5a, sizeof(s.peer->gid));
	s.peer->epoch = 1;
}

int LLVMFuzzerTestOneInput(const u8 *data, size_t size)
{
	static void (*const steps[])(void) = {
		header, post_signal, post_event, take_signals, take_event, arm,
		alloc, retire, hold, copy, gids, backoff, begin, peer_writes,
		good_header,
	};

	input = data;
	left = size;
	if (!window)
		window = aligned_alloc(4096, WINDOW);
	memset(window, 0, IVPCI_CTRL_AREAS);
	memset(&s, 0, sizeof(s));
	s.side = next() & 1;
	s.own = (void *)(window + s.side * IVPCI_CTRL_SIZE);
	s.peer = (void *)(window + !s.side * IVPCI_CTRL_SIZE);
	assert(!ivpci_dmbs_init(&s.dmbs, SHIFT, s.side));
	s.dmbs.busy = busy;
	begin();
	while (left) {
		u8 step = next() % (sizeof(steps) / sizeof(steps[0]));

		turns = 0;
		steps[step]();
		/* The others change no DMB */
		if (steps[step] == alloc || steps[step] == retire ||
		    steps[step] == hold || steps[step] == begin)
			check();
	}
	check();
	ivpci_dmbs_exit(&s.dmbs);
	return 0;
}
