// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests of what needs no device: headers, rings, DMBs, tokens. Both sides
 * of a window live in ordinary memory here, and one of them may be hostile.
 */

#include <kunit/test.h>
#include <linux/module.h>
#include <linux/prandom.h>
#include <linux/random.h>

/* The module under test is linked in, so that no device is needed to load it */
#include "attach.c"
#include "dmb.c"
#include "ring.c"

#define TEST_SHIFT	22	/* 4 MiB */

struct test_side {
	struct ivpci_ctrl *own;
	struct ivpci_ctrl *peer;
	struct ivpci_tx tx;
	struct ivpci_rx rx;
	struct ivpci_dmbs dmbs;
	struct ivpci_remotes remotes;
};

struct test_window {
	struct ivpci_ctrl *ctrl[2];
	struct test_side side[2];
};

static void fill_header(struct ivpci_ctrl *ctrl, u32 epoch)
{
	ctrl->magic = cpu_to_le64(IVPCI_MAGIC);
	ctrl->version = cpu_to_le32(IVPCI_VERSION);
	ctrl->epoch = cpu_to_le32(epoch);
	ctrl->position = cpu_to_le32(7);
	ctrl->vector = cpu_to_le32(1);
	ctrl->window_shift = cpu_to_le32(TEST_SHIFT);
	ctrl->slots = cpu_to_le32(IVPCI_SLOTS);
	ctrl->tag = cpu_to_le32(3);
	memset(&ctrl->gid, 0x5a, sizeof(ctrl->gid));
}

static int window_init(struct kunit *test)
{
	struct test_window *w = kunit_kzalloc(test, sizeof(*w), GFP_KERNEL);
	int i;

	KUNIT_ASSERT_NOT_NULL(test, w);
	for (i = 0; i < 2; i++) {
		w->ctrl[i] = kunit_kzalloc(test, IVPCI_CTRL_SIZE, GFP_KERNEL);
		KUNIT_ASSERT_NOT_NULL(test, w->ctrl[i]);
	}
	for (i = 0; i < 2; i++) {
		struct test_side *s = &w->side[i];

		s->own = w->ctrl[i];
		s->peer = w->ctrl[!i];
		ivpci_tx_init(&s->tx, s->own, s->peer);
		ivpci_rx_init(&s->rx, s->own, s->peer);
		KUNIT_ASSERT_EQ(test, ivpci_dmbs_init(&s->dmbs, TEST_SHIFT, i),
				0);
		ivpci_dmbs_begin(&s->dmbs, s->own, s->peer);
		ivpci_remotes_init(&s->remotes, s->own, s->peer, TEST_SHIFT, i);
	}
	test->priv = w;
	return 0;
}

static void window_exit(struct kunit *test)
{
	struct test_window *w = test->priv;

	if (!w)
		return;
	ivpci_dmbs_exit(&w->side[0].dmbs);
	ivpci_dmbs_exit(&w->side[1].dmbs);
}

/* headers */

static void header_good(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct ivpci_header hdr;

	fill_header(w->ctrl[1], 42);
	KUNIT_EXPECT_NULL(test, ivpci_read_header(w->ctrl[1], TEST_SHIFT, &hdr));
	KUNIT_EXPECT_EQ(test, hdr.epoch, 42);
	KUNIT_EXPECT_EQ(test, hdr.position, 7);
	KUNIT_EXPECT_EQ(test, hdr.vector, 1);
	KUNIT_EXPECT_EQ(test, hdr.tag, 3);
}

static void header_bad(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct ivpci_ctrl *ctrl = w->ctrl[1];
	struct ivpci_header hdr;

#define EXPECT_REFUSED(change)						\
	do {								\
		fill_header(ctrl, 42);					\
		change;							\
		KUNIT_EXPECT_NOT_NULL_MSG(test,				\
			ivpci_read_header(ctrl, TEST_SHIFT, &hdr),	\
			"accepted with " #change);			\
	} while (0)

	EXPECT_REFUSED(ctrl->epoch = 0);
	EXPECT_REFUSED(ctrl->magic = 0);
	EXPECT_REFUSED(ctrl->version = cpu_to_le32(2));
	EXPECT_REFUSED(ctrl->window_shift = cpu_to_le32(TEST_SHIFT + 1));
	EXPECT_REFUSED(ctrl->slots = cpu_to_le32(IVPCI_SLOTS + 1));
	EXPECT_REFUSED(ctrl->vector = cpu_to_le32(IVPCI_VECTORS));
	EXPECT_REFUSED(ctrl->vector = cpu_to_le32(U32_MAX));
	EXPECT_REFUSED(ctrl->tag = cpu_to_le32(IVPCI_LINKS));
	EXPECT_REFUSED(memset(ctrl->gid.b, 0, 8));
	EXPECT_REFUSED(memset(ctrl->gid.b + 8, 0, 8));
#undef EXPECT_REFUSED
}

/* GIDs */

static const u32 a_device[4] = { 0x11111111, 0x22222222, 0x33333333, 0x44444444 };

/* A peer can present no GID of another peer's device, whatever it looks like. */
static void gid_of_another_device(struct kunit *test)
{
	static const u32 others[][4] = {
		{ 0x11111111, 0x22222222, 0x33333333, 0x44444445 },
		{ 0x11111111, 0x22222222, 0x33333332, 0x44444444 },
		{ 0x11111110, 0x22222222, 0x33333333, 0x44444444 },
		{ 0, 0, 0, 1 },
	};
	uuid_t gid, other;
	int i;

	get_random_bytes(&gid, sizeof(gid));
	KUNIT_EXPECT_FALSE(test, ivpci_gid_bound(&gid, a_device));
	ivpci_gid_bind(&gid, a_device);
	KUNIT_EXPECT_TRUE(test, ivpci_gid_bound(&gid, a_device));
	for (i = 0; i < ARRAY_SIZE(others); i++) {
		/* its own first half, and the second half of a third guest */
		get_random_bytes(&other, sizeof(other));
		ivpci_gid_bind(&other, others[i]);
		KUNIT_EXPECT_TRUE(test, ivpci_gid_bound(&other, others[i]));
		KUNIT_EXPECT_FALSE(test, ivpci_gid_bound(&other, a_device));
		memcpy(other.b + 8, gid.b + 8, 8);
		KUNIT_EXPECT_FALSE(test, ivpci_gid_bound(&other, others[i]));
	}
}

/* Each probe has another GID, and none has a half that is zero. */
static void gid_fresh(struct kunit *test)
{
	static const u32 null[4];
	uuid_t one, two;

	generate_random_uuid(one.b);
	generate_random_uuid(two.b);
	ivpci_gid_bind(&one, a_device);
	ivpci_gid_bind(&two, a_device);
	KUNIT_EXPECT_NE(test, memcmp(one.b + 8, two.b + 8, 8), 0);
	ivpci_gid_bind(&one, null);
	KUNIT_EXPECT_TRUE(test, ivpci_gid_bound(&one, null));
	KUNIT_EXPECT_NOT_NULL(test, memchr_inv(one.b, 0, 8));
}

/* backoff */

/* Who comes and goes all the time gets slower; who was there for a while does not. */
static void backoff_rate(struct kunit *test)
{
	unsigned long wait = 0, sum = 0;
	int i;

	wait = ivpci_backoff(wait, IVPCI_STEADY, false);
	KUNIT_EXPECT_EQ(test, wait, 0);
	wait = ivpci_backoff(wait, IVPCI_STEADY, true);
	KUNIT_EXPECT_EQ(test, wait, HZ);
	for (i = 0, wait = 0; i < 100; i++) {
		unsigned long next = ivpci_backoff(wait, 0, i & 1);

		KUNIT_EXPECT_GT(test, next, 0);
		KUNIT_EXPECT_GE(test, next, wait);
		KUNIT_EXPECT_LE(test, next, 4 * HZ);
		wait = next;
		sum += wait;
	}
	KUNIT_EXPECT_GE(test, sum, 4 * HZ * 90);
	KUNIT_EXPECT_EQ(test, ivpci_backoff(wait, IVPCI_STEADY, false), 0);
}

/* signals */

static u32 slot_of(u32 signal)
{
	return FIELD_GET(IVPCI_SIGNAL_SLOT, signal);
}

static u32 index_of(u32 signal)
{
	return FIELD_GET(IVPCI_SIGNAL_INDEX, signal);
}

static void signal_passes(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct test_side *a = &w->side[0], *b = &w->side[1];
	u32 got[4];

	KUNIT_EXPECT_EQ(test, ivpci_signal_take(&b->rx, got, 4), 0);
	KUNIT_EXPECT_FALSE(test, ivpci_rx_pending(&b->rx));
	ivpci_signal_post(&a->tx, 5, 1);
	ivpci_signal_post(&a->tx, 1023, 15);
	KUNIT_EXPECT_TRUE(test, ivpci_rx_pending(&b->rx));
	KUNIT_EXPECT_EQ(test, ivpci_signal_take(&b->rx, got, 4), 2);
	KUNIT_EXPECT_EQ(test, slot_of(got[0]), 5);
	KUNIT_EXPECT_EQ(test, index_of(got[0]), 1);
	KUNIT_EXPECT_EQ(test, slot_of(got[1]), 1023);
	KUNIT_EXPECT_EQ(test, index_of(got[1]), 15);
	KUNIT_EXPECT_FALSE(test, ivpci_rx_pending(&b->rx));
}

static void signal_coalesces(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct test_side *a = &w->side[0], *b = &w->side[1];
	u32 got[4];

	KUNIT_EXPECT_NE(test, ivpci_signal_post(&a->tx, 5, 1), IVPCI_COALESCED);
	KUNIT_EXPECT_EQ(test, ivpci_signal_post(&a->tx, 5, 1), IVPCI_COALESCED);
	KUNIT_EXPECT_NE(test, ivpci_signal_post(&a->tx, 5, 2), IVPCI_COALESCED);
	KUNIT_EXPECT_NE(test, ivpci_signal_post(&a->tx, 6, 1), IVPCI_COALESCED);
	/* as soon as it is consumed, the next is posted again */
	KUNIT_EXPECT_EQ(test, ivpci_signal_take(&b->rx, got, 4), 3);
	KUNIT_EXPECT_NE(test, ivpci_signal_post(&a->tx, 5, 1), IVPCI_COALESCED);
	KUNIT_EXPECT_EQ(test, ivpci_signal_take(&b->rx, got, 4), 1);
}

static void signal_rings_sleepers(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct test_side *a = &w->side[0], *b = &w->side[1];
	u32 got[4];

	KUNIT_EXPECT_FALSE(test, ivpci_rx_arm(&b->rx));
	KUNIT_EXPECT_EQ(test, ivpci_signal_post(&a->tx, 0, 0), IVPCI_RING);
	/* one doorbell is enough */
	KUNIT_EXPECT_EQ(test, ivpci_signal_post(&a->tx, 1, 0), IVPCI_POSTED);
	/* who wants to sleep is told of what has come */
	KUNIT_EXPECT_TRUE(test, ivpci_rx_arm(&b->rx));
	KUNIT_EXPECT_EQ(test, ivpci_signal_take(&b->rx, got, 4), 2);

	ivpci_rx_disarm(&b->rx);
	KUNIT_EXPECT_EQ(test, ivpci_signal_post(&a->tx, 2, 0), IVPCI_POSTED);
	KUNIT_EXPECT_EQ(test, ivpci_signal_take(&b->rx, got, 4), 1);
	KUNIT_EXPECT_FALSE(test, ivpci_rx_arm(&b->rx));
	KUNIT_EXPECT_EQ(test, ivpci_signal_post(&a->tx, 3, 0), IVPCI_RING);
}

static void signal_full_ring(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct test_side *a = &w->side[0], *b = &w->side[1];
	u32 got[8], slot;
	int n = 0, rc;

	for (slot = 0; slot < IVPCI_SLOTS; slot++)
		KUNIT_ASSERT_GE(test, ivpci_signal_post(&a->tx, slot, 0), 0);
	KUNIT_EXPECT_EQ(test, ivpci_signal_post(&a->tx, 9, 0), IVPCI_COALESCED);
	KUNIT_EXPECT_EQ(test, ivpci_signal_post(&a->tx, 9, 1), -EBUSY);
	while ((rc = ivpci_signal_take(&b->rx, got, 8)) > 0)
		n += rc;
	KUNIT_EXPECT_EQ(test, rc, 0);
	KUNIT_EXPECT_EQ(test, n, IVPCI_SLOTS);
}

/* Indices wrap at 2^32; a slot that rested for that long is not coalesced. */
static void signal_wraps(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct test_side *a = &w->side[0], *b = &w->side[1];
	u32 got[4];
	int i;

	ivpci_signal_post(&a->tx, 0, 0);
	ivpci_signal_take(&b->rx, got, 4);
	a->tx.prod += U32_MAX - 2ULL;
	b->rx.cons += U32_MAX - 2;
	b->own->signal_cons = cpu_to_le32(b->rx.cons);
	a->own->signal_prod = cpu_to_le32((u32)a->tx.prod);

	for (i = 1; i < 8; i++) {
		ivpci_rx_arm(&b->rx);
		KUNIT_EXPECT_EQ(test, ivpci_signal_post(&a->tx, i, 0),
				IVPCI_RING);
		KUNIT_EXPECT_EQ(test, ivpci_signal_take(&b->rx, got, 4), 1);
		KUNIT_EXPECT_EQ(test, got[0], i);
	}

	/* slot 0 was last posted as number 0, which is about to come again */
	a->tx.prod = 1ULL << 32;
	b->rx.cons = 0;
	b->own->signal_cons = 0;
	a->own->signal_prod = 0;
	ivpci_signal_post(&a->tx, 1, 0);
	KUNIT_EXPECT_NE(test, ivpci_signal_post(&a->tx, 0, 0), IVPCI_COALESCED);
}

static void signal_hostile_consumer(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct test_side *a = &w->side[0];

	ivpci_signal_post(&a->tx, 5, 0);
	/* more consumed than was ever posted */
	a->peer->signal_cons = cpu_to_le32(2);
	KUNIT_EXPECT_EQ(test, ivpci_signal_post(&a->tx, 5, 0), -EPROTO);
	a->peer->signal_cons = cpu_to_le32(0x80000000);
	KUNIT_EXPECT_EQ(test, ivpci_signal_post(&a->tx, 5, 0), -EPROTO);
}

static void signal_hostile_producer(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct test_side *b = &w->side[1];
	u32 got[4];

	b->peer->signal_prod = cpu_to_le32(IVPCI_SIGNALS + 1);
	KUNIT_EXPECT_EQ(test, ivpci_signal_take(&b->rx, got, 4), -EPROTO);
	b->peer->signal_prod = cpu_to_le32(U32_MAX);
	KUNIT_EXPECT_EQ(test, ivpci_signal_take(&b->rx, got, 4), -EPROTO);
	/* what we are ahead of is no more than a ring */
	b->peer->signal_prod = cpu_to_le32(IVPCI_SIGNALS);
	KUNIT_EXPECT_EQ(test, ivpci_signal_take(&b->rx, got, 4), 4);
}

/* The peer can write to our control area as well: we must not read it back. */
static void signal_own_area_spoilt(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct test_side *a = &w->side[0], *b = &w->side[1];
	u32 got[4];

	ivpci_signal_post(&a->tx, 1, 0);
	memset(a->own, 0xff, sizeof(*a->own));
	a->peer->signal_cons = cpu_to_le32(1);
	KUNIT_EXPECT_GE(test, ivpci_signal_post(&a->tx, 2, 0), IVPCI_POSTED);
	KUNIT_EXPECT_EQ(test, le32_to_cpu(a->own->signal_prod), 2);
	b->rx.cons = 1;
	KUNIT_EXPECT_EQ(test, ivpci_signal_take(&b->rx, got, 4), 1);
	KUNIT_EXPECT_EQ(test, got[0], 2);
}

/* events */

static void event_passes(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct test_side *a = &w->side[0], *b = &w->side[1];
	u32 code, i;
	u64 info;

	KUNIT_EXPECT_EQ(test, ivpci_event_take(&b->rx, &code, &info), 0);
	for (i = 0; i < IVPCI_EVENTS; i++)
		KUNIT_EXPECT_EQ(test, ivpci_event_post(&a->tx, i, ~0ULL - i), 0);
	KUNIT_EXPECT_EQ(test, ivpci_event_post(&a->tx, 1, 1), -EBUSY);
	for (i = 0; i < IVPCI_EVENTS; i++) {
		KUNIT_EXPECT_EQ(test, ivpci_event_take(&b->rx, &code, &info), 1);
		KUNIT_EXPECT_EQ(test, code, i);
		KUNIT_EXPECT_EQ(test, info, ~0ULL - i);
	}
	KUNIT_EXPECT_EQ(test, ivpci_event_take(&b->rx, &code, &info), 0);
	KUNIT_EXPECT_EQ(test, ivpci_event_post(&a->tx, 1, 1), 0);
}

static void event_hostile(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct test_side *a = &w->side[0];
	u32 code;
	u64 info;

	a->peer->event_prod = cpu_to_le32(IVPCI_EVENTS + 1);
	KUNIT_EXPECT_EQ(test, ivpci_event_take(&a->rx, &code, &info), -EPROTO);
	a->peer->event_cons = cpu_to_le32(1);
	KUNIT_EXPECT_EQ(test, ivpci_event_post(&a->tx, 1, 1), -EPROTO);
}

/* tokens */

static u32 tag_of(u64 token)
{
	return FIELD_GET(IVPCI_TOKEN_TAG, token);
}

static void token_fields(struct kunit *test)
{
	u64 token = ivpci_token(0, 0, 0);

	KUNIT_EXPECT_NE(test, token, 0);
	KUNIT_EXPECT_EQ(test, ivpci_token_slot(token), 0);
	token = ivpci_token(U64_MAX, 63, IVPCI_SLOTS - 1);
	KUNIT_EXPECT_EQ(test, ivpci_token_slot(token), IVPCI_SLOTS - 1);
	KUNIT_EXPECT_EQ(test, tag_of(token), 63);
	KUNIT_EXPECT_LT(test, ivpci_token_slot(0), 0);
	KUNIT_EXPECT_LT(test, ivpci_token_slot(IVPCI_SLOTS + 1), 0);
	KUNIT_EXPECT_LT(test, ivpci_token_slot(U64_MAX), 0);
}

/* DMBs that we own */

static void dmb_sizes(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct ivpci_dmbs *dmbs = &w->side[0].dmbs;

	KUNIT_EXPECT_EQ(test, ivpci_dmb_alloc(dmbs, 0), -EINVAL);
	KUNIT_EXPECT_EQ(test, ivpci_dmb_alloc(dmbs, SZ_8K), -EINVAL);
	KUNIT_EXPECT_EQ(test, ivpci_dmb_alloc(dmbs, SZ_16K + 1), -EINVAL);
	KUNIT_EXPECT_EQ(test, ivpci_dmb_alloc(dmbs, 3 * SZ_16K), -EINVAL);
	KUNIT_EXPECT_EQ(test, ivpci_dmb_alloc(dmbs, SZ_2G), -ENOSPC);
	KUNIT_EXPECT_EQ(test, dmbs->live, 0);
}

/* No two overlap, all are aligned and within the side's half. */
static void dmb_fill(struct kunit *test)
{
	static const u32 sizes[] = { SZ_16K, SZ_64K, SZ_32K, SZ_1M, SZ_16K };
	struct test_window *w = test->priv;
	int side, i, j, n;

	for (side = 0; side < 2; side++) {
		struct ivpci_dmbs *dmbs = &w->side[side].dmbs;
		u64 half = 1ULL << (TEST_SHIFT - 1);

		for (n = 0; ; n++) {
			int slot = ivpci_dmb_alloc(dmbs, sizes[n % 5]);

			if (slot < 0)
				break;
			KUNIT_ASSERT_EQ(test, slot, n);
		}
		KUNIT_EXPECT_GT(test, n, 5);
		KUNIT_EXPECT_EQ(test, dmbs->live, n);
		for (i = 0; i < n; i++) {
			struct ivpci_dmb *d = &dmbs->slot[i];

			KUNIT_EXPECT_EQ(test, d->off % d->len, 0);
			KUNIT_EXPECT_GE(test, d->off,
					side ? half : IVPCI_CTRL_AREAS);
			KUNIT_EXPECT_LE(test, d->off + d->len,
					side ? 2 * half : half);
			for (j = 0; j < i; j++) {
				struct ivpci_dmb *e = &dmbs->slot[j];

				KUNIT_EXPECT_TRUE(test,
						  d->off + d->len <= e->off ||
						  e->off + e->len <= d->off);
			}
		}
		for (i = 0; i < n; i++)
			ivpci_dmb_retire(dmbs, i);
		KUNIT_EXPECT_EQ(test, dmbs->live, 0);
		KUNIT_EXPECT_EQ(test, dmbs->retired, 0);
		KUNIT_EXPECT_GE(test, ivpci_dmb_alloc(dmbs, SZ_1M), 0);
	}
}

static void dmb_random(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct ivpci_dmbs *dmbs = &w->side[1].dmbs;
	struct rnd_state rnd;
	unsigned int live = 0;
	int i, slot;

	prandom_seed_state(&rnd, 2026);
	for (i = 0; i < 20000; i++) {
		u32 r = prandom_u32_state(&rnd);

		if (r & 1) {
			slot = ivpci_dmb_alloc(dmbs, SZ_16K << (r >> 8) % 7);
			if (slot >= 0) {
				ivpci_dmb_publish(dmbs, slot,
						  ivpci_token(r, 0, slot));
				live++;
			}
		} else {
			slot = (r >> 8) % 64;
			if (dmbs->slot[slot].state == IVPCI_DMB_LIVE) {
				ivpci_dmb_retire(dmbs, slot);
				live--;
			}
		}
		KUNIT_ASSERT_EQ(test, dmbs->live, live);
	}
	for (slot = 0; slot < IVPCI_SLOTS; slot++)
		if (dmbs->slot[slot].state == IVPCI_DMB_LIVE)
			ivpci_dmb_retire(dmbs, slot);
	KUNIT_EXPECT_EQ(test, bitmap_weight(dmbs->map, dmbs->units),
			dmbs->units - (dmbs->last - dmbs->first));
}

/* As SMC does: ask for less and less until it is granted. */
static int alloc_downgraded(struct ivpci_dmbs *dmbs)
{
	u32 len;

	for (len = SZ_1M; len >= SZ_16K; len /= 2)
		if (ivpci_dmb_affordable(dmbs, len))
			return ivpci_dmb_alloc(dmbs, len);
	return -ENOSPC;
}

/* Who comes first gets much, and still there is something for many. */
static void dmb_shares(struct kunit *test)
{
	struct ivpci_dmbs *dmbs = kunit_kzalloc(test, sizeof(*dmbs), GFP_KERNEL);
	struct test_window *w = test->priv;
	int slot, n = 0;

	KUNIT_ASSERT_NOT_NULL(test, dmbs);
	KUNIT_ASSERT_EQ(test, ivpci_dmbs_init(dmbs, 26, 0), 0);
	ivpci_dmbs_begin(dmbs, w->ctrl[0], w->ctrl[1]);
	for (slot = alloc_downgraded(dmbs); slot >= 0;
	     slot = alloc_downgraded(dmbs)) {
		KUNIT_EXPECT_GE(test, dmbs->slot[slot].len,
				n < 16 ? SZ_512K : SZ_16K);
		n++;
	}
	KUNIT_EXPECT_EQ(test, dmbs->slot[0].len, SZ_1M);
	KUNIT_EXPECT_GE(test, n, 120);
	KUNIT_EXPECT_EQ(test, bitmap_weight(dmbs->map, dmbs->units),
			dmbs->units);
	ivpci_dmbs_exit(dmbs);
}

static void dmb_all_slots(struct kunit *test)
{
	struct ivpci_dmbs *dmbs = kunit_kzalloc(test, sizeof(*dmbs), GFP_KERNEL);
	struct test_window *w = test->priv;
	int i;

	KUNIT_ASSERT_NOT_NULL(test, dmbs);
	KUNIT_ASSERT_EQ(test, ivpci_dmbs_init(dmbs, 30, 0), 0);
	ivpci_dmbs_begin(dmbs, w->ctrl[0], w->ctrl[1]);
	for (i = 0; i < IVPCI_SLOTS; i++)
		KUNIT_ASSERT_EQ(test, ivpci_dmb_alloc(dmbs, SZ_16K), i);
	KUNIT_EXPECT_EQ(test, ivpci_dmb_alloc(dmbs, SZ_16K), -ENOSPC);
	ivpci_dmb_retire(dmbs, 77);
	KUNIT_EXPECT_EQ(test, ivpci_dmb_alloc(dmbs, SZ_16K), 77);
	ivpci_dmbs_exit(dmbs);
}

static int publish(struct kunit *test, struct test_side *s, u32 len, u64 *token)
{
	int slot = ivpci_dmb_alloc(&s->dmbs, len);

	KUNIT_ASSERT_GE(test, slot, 0);
	*token = ivpci_token(get_random_u64(), 0, slot);
	ivpci_dmb_publish(&s->dmbs, slot, *token);
	return slot;
}

static void dmb_held_by_peer(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct test_side *a = &w->side[0], *b = &w->side[1];
	struct ivpci_remote *remote;
	u64 token, other;
	int slot;

	slot = publish(test, a, SZ_64K, &token);
	remote = ivpci_remote_hold(&b->remotes, token);
	KUNIT_ASSERT_NOT_NULL(test, remote);
	KUNIT_EXPECT_EQ(test, remote->off, a->dmbs.slot[slot].off);
	KUNIT_EXPECT_EQ(test, remote->len, SZ_64K);
	KUNIT_EXPECT_PTR_EQ(test, ivpci_remote_hold(&b->remotes, token), remote);
	KUNIT_EXPECT_EQ(test, b->remotes.held, 1);

	/* neither memory nor slot are used again before the peer lets go */
	ivpci_dmb_retire(&a->dmbs, slot);
	KUNIT_EXPECT_EQ(test, a->dmbs.live, 0);
	KUNIT_EXPECT_EQ(test, a->dmbs.retired, 1);
	KUNIT_EXPECT_NULL(test, ivpci_remote_hold(&b->remotes, token));
	KUNIT_EXPECT_NE(test, publish(test, a, SZ_64K, &other), slot);

	ivpci_remote_put(&b->remotes, remote);
	KUNIT_EXPECT_PTR_EQ(test, ivpci_remote_find(&b->remotes, token), remote);
	ivpci_remote_put(&b->remotes, remote);
	KUNIT_EXPECT_NULL(test, ivpci_remote_find(&b->remotes, token));
	KUNIT_EXPECT_EQ(test, b->remotes.held, 0);
	KUNIT_EXPECT_EQ(test, publish(test, a, SZ_64K, &other), slot);
	KUNIT_EXPECT_EQ(test, a->dmbs.retired, 0);
	KUNIT_EXPECT_NULL(test, ivpci_remote_hold(&b->remotes, token));
}

static bool is_busy;

static bool test_busy(struct ivpci_dmbs *dmbs, const struct ivpci_dmb *dmb)
{
	return is_busy;
}

static void dmb_held_by_us(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct test_side *a = &w->side[0];
	u64 token;
	int slot;

	a->dmbs.busy = test_busy;
	is_busy = true;
	slot = publish(test, a, SZ_16K, &token);
	ivpci_dmb_retire(&a->dmbs, slot);
	KUNIT_EXPECT_EQ(test, a->dmbs.retired, 1);
	is_busy = false;
	KUNIT_EXPECT_EQ(test, publish(test, a, SZ_16K, &token), slot);
	KUNIT_EXPECT_EQ(test, a->dmbs.retired, 0);
}

/*
 * A link begins again around what programs keep: it is not used for anything
 * else, and what the peer had of old does not count.
 */
static void dmb_kept_by_programs(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct test_side *a = &w->side[0], *b = &w->side[1];
	int kept, retired, slot;
	u64 token, old;
	int n;

	a->dmbs.busy = test_busy;
	is_busy = false;
	kept = publish(test, a, SZ_64K, &old);
	retired = publish(test, a, SZ_64K, &token);
	KUNIT_ASSERT_NOT_NULL(test, ivpci_remote_hold(&b->remotes, token));
	ivpci_dmb_retire(&a->dmbs, retired);

	memset(a->own, 0, sizeof(*a->own));
	memset(b->own, 0, sizeof(*b->own));
	ivpci_dmbs_begin(&a->dmbs, a->own, a->peer);
	ivpci_remotes_init(&b->remotes, b->own, b->peer, TEST_SHIFT, 1);
	/* a token of old that the peer goes on to show keeps nothing */
	b->own->attached[retired] = cpu_to_le64(token);
	KUNIT_EXPECT_NULL(test, ivpci_remote_hold(&b->remotes, old));
	KUNIT_EXPECT_EQ(test, a->dmbs.live, 1);
	for (n = 0; ; n++) {
		slot = ivpci_dmb_alloc(&a->dmbs, SZ_64K);
		if (slot < 0)
			break;
		KUNIT_EXPECT_NE(test, slot, kept);
		KUNIT_EXPECT_NE(test, a->dmbs.slot[slot].off,
				a->dmbs.slot[kept].off);
	}
	/* 2 MiB less the control areas and one that is kept */
	KUNIT_EXPECT_EQ(test, n, 29);
	KUNIT_EXPECT_EQ(test, a->dmbs.retired, 0);
	ivpci_dmb_retire(&a->dmbs, kept);
	KUNIT_EXPECT_EQ(test, ivpci_dmb_alloc(&a->dmbs, SZ_64K), kept);
}

/* DMBs of the peer */

static void remote_hostile_entry(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct test_side *b = &w->side[1];
	u64 half = 1ULL << (TEST_SHIFT - 1);
	struct ivpci_dirent *entry = &b->peer->dir[4];
	u64 token = ivpci_token(0x123456789abcdef0, 0, 4);
	static const struct {
		u64 off;
		u64 len;
	} bad[] = {
		{ 0, SZ_16K },				/* control areas */
		{ SZ_64K, SZ_64K },
		{ IVPCI_CTRL_AREAS, 0 },		/* sizes */
		{ IVPCI_CTRL_AREAS, SZ_8K },
		{ IVPCI_CTRL_AREAS, SZ_16K + 1 },
		{ IVPCI_CTRL_AREAS, 0xffffffff },
		{ IVPCI_CTRL_AREAS, SZ_2G },
		{ IVPCI_CTRL_AREAS, SZ_256K },		/* alignment */
		{ IVPCI_CTRL_AREAS + SZ_4K, SZ_16K },
		{ 1 << (TEST_SHIFT - 1), SZ_16K },	/* our half */
		{ 1 << TEST_SHIFT, SZ_16K },		/* behind the window */
		{ 0xfffff000ULL << 12, SZ_16K },
	};
	int i;

	entry->token = cpu_to_le64(token);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		entry->off = cpu_to_le32(bad[i].off >> IVPCI_DMB_OFF_SHIFT);
		entry->len = cpu_to_le32(bad[i].len);
		KUNIT_EXPECT_NULL_MSG(test,
				      ivpci_remote_hold(&b->remotes, token),
				      "accepted off %llx len %llx", bad[i].off,
				      bad[i].len);
	}
	KUNIT_EXPECT_EQ(test, b->remotes.held, 0);

	/* the last that fits */
	entry->off = cpu_to_le32((half - SZ_16K) >> IVPCI_DMB_OFF_SHIFT);
	entry->len = cpu_to_le32(SZ_16K);
	KUNIT_EXPECT_NOT_NULL(test, ivpci_remote_hold(&b->remotes, token));
}

/* Once it is in use, neither its place nor its size can be changed. */
static void remote_hostile_change(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct test_side *a = &w->side[0], *b = &w->side[1];
	struct ivpci_remote *remote;
	u64 token, other;
	u64 off;
	int slot;

	slot = publish(test, a, SZ_64K, &token);
	remote = ivpci_remote_hold(&b->remotes, token);
	KUNIT_ASSERT_NOT_NULL(test, remote);
	off = remote->off;
	a->own->dir[slot].off = cpu_to_le32(1);
	a->own->dir[slot].len = cpu_to_le32(SZ_1G);
	KUNIT_EXPECT_PTR_EQ(test, ivpci_remote_hold(&b->remotes, token), remote);
	KUNIT_EXPECT_EQ(test, remote->off, off);
	KUNIT_EXPECT_EQ(test, remote->len, SZ_64K);
	/* nor may another DMB take the slot */
	other = token ^ (1ULL << 40);
	a->own->dir[slot].token = cpu_to_le64(other);
	KUNIT_EXPECT_NULL(test, ivpci_remote_hold(&b->remotes, other));
	KUNIT_EXPECT_NULL(test, ivpci_remote_hold(&b->remotes, token));
}

static void remote_no_token(struct kunit *test)
{
	struct test_window *w = test->priv;
	struct test_side *b = &w->side[1];

	KUNIT_EXPECT_NULL(test, ivpci_remote_hold(&b->remotes, 0));
	KUNIT_EXPECT_NULL(test, ivpci_remote_hold(&b->remotes, U64_MAX));
	KUNIT_EXPECT_NULL(test, ivpci_remote_find(&b->remotes, 0));
	KUNIT_EXPECT_NULL(test, ivpci_remote_find(&b->remotes, U64_MAX));
	KUNIT_EXPECT_NULL(test, ivpci_remote_hold(&b->remotes,
						  ivpci_token(1, 0, 3)));
}

/* copying */

static void copy_all_sizes(struct kunit *test)
{
	u8 *src = kunit_kzalloc(test, 512, GFP_KERNEL);
	u8 *dst = kunit_kzalloc(test, 512, GFP_KERNEL);
	u32 len, from, to;
	int i;

	KUNIT_ASSERT_NOT_NULL(test, src);
	KUNIT_ASSERT_NOT_NULL(test, dst);
	for (i = 0; i < 512; i++)
		src[i] = i * 7 + 1;
	for (len = 0; len < 200; len++)
		for (from = 0; from < 9; from++)
			for (to = 16; to < 25; to++) {
				memset(dst, 0, 512);
				ivpci_copy(dst + to, src + from, len);
				if (memchr_inv(dst, 0, to) ||
				    memcmp(dst + to, src + from, len) ||
				    memchr_inv(dst + to + len, 0,
					       512 - to - len)) {
					KUNIT_FAIL(test, "len %u from %u to %u",
						   len, from, to);
					return;
				}
			}
}

static struct kunit_case ivpci_cases[] = {
	KUNIT_CASE(header_good),
	KUNIT_CASE(header_bad),
	KUNIT_CASE(gid_of_another_device),
	KUNIT_CASE(gid_fresh),
	KUNIT_CASE(backoff_rate),
	KUNIT_CASE(signal_passes),
	KUNIT_CASE(signal_coalesces),
	KUNIT_CASE(signal_rings_sleepers),
	KUNIT_CASE(signal_full_ring),
	KUNIT_CASE(signal_wraps),
	KUNIT_CASE(signal_hostile_consumer),
	KUNIT_CASE(signal_hostile_producer),
	KUNIT_CASE(signal_own_area_spoilt),
	KUNIT_CASE(event_passes),
	KUNIT_CASE(event_hostile),
	KUNIT_CASE(token_fields),
	KUNIT_CASE(dmb_sizes),
	KUNIT_CASE(dmb_fill),
	KUNIT_CASE(dmb_random),
	KUNIT_CASE(dmb_shares),
	KUNIT_CASE(dmb_all_slots),
	KUNIT_CASE(dmb_held_by_peer),
	KUNIT_CASE(dmb_held_by_us),
	KUNIT_CASE(dmb_kept_by_programs),
	KUNIT_CASE(remote_hostile_entry),
	KUNIT_CASE(remote_hostile_change),
	KUNIT_CASE(remote_no_token),
	KUNIT_CASE(copy_all_sizes),
	{ }
};

static struct kunit_suite ivpci_suite = {
	.name = "ivpci",
	.init = window_init,
	.exit = window_exit,
	.test_cases = ivpci_cases,
};

kunit_test_suite(ivpci_suite);

MODULE_DESCRIPTION("Tests of ivpci");
MODULE_LICENSE("GPL");
