// SPDX-License-Identifier: GPL-2.0
/*
 * KUnit tests of receiving: what an interrupt looks at, and how much of it. The
 * peers are hostile: their rings are full, and stay so.
 */

#include <kunit/test.h>
#include <linux/kthread.h>
#include <linux/vmalloc.h>

/* The code under test is linked in, so that no device is needed to load it */
#include "poll.c"

#define TEST_LINKS	4
/* What one interrupt takes: a budget, and one each time that arming fails */
#define TEST_AT_ONCE	(5 * IVPCI_BUDGET)

struct test_poll {
	struct ivpci iv;
	struct dibs_dev dibs;
	struct dibs_client client;
	u8 clients[TEST_LINKS];
	struct ivpci_link links[TEST_LINKS];
	struct ivpci_tx tx[TEST_LINKS];
	unsigned int kicked[TEST_LINKS];
	unsigned int faults[TEST_LINKS];
	unsigned int signals[TEST_LINKS];
	unsigned int events;
	unsigned int scans;
	bool refill;
	u32 index;
};

static struct test_poll *test_poll_of(struct ivpci *iv)
{
	return container_of(iv, struct test_poll, iv);
}

/* What link.c and links.c have */

void ivpci_link_kick(struct ivpci_link *link)
{
	test_poll_of(link->iv)->kicked[link->index]++;
}

void ivpci_link_fault(struct ivpci_link *link, const char *why)
{
	test_poll_of(link->iv)->faults[link->index]++;
}

bool ivpci_peer_there(struct ivpci_link *link)
{
	return true;
}

void ivpci_links_scan(struct ivpci *iv)
{
	test_poll_of(iv)->scans++;
}

/* What SMC has. DMB index i is slot 0 of link i. */

static void test_handle_irq(struct dibs_dev *dibs, unsigned int idx, u16 mask)
{
	struct test_poll *t = container_of(dibs, struct test_poll, dibs);

	t->signals[idx]++;
	/* a peer that posts as fast as we take */
	if (t->refill)
		ivpci_signal_post(&t->tx[idx], 0, t->index++ % 16);
}

static void test_handle_event(struct dibs_dev *dibs,
			      const struct dibs_event *event)
{
	container_of(dibs, struct test_poll, dibs)->events++;
}

static const struct dibs_client_ops test_client_ops = {
	.handle_irq = test_handle_irq,
	.handle_event = test_handle_event,
};

static int test_idle(void *data)
{
	for (;;) {
		set_current_state(TASK_IDLE);
		if (kthread_should_stop())
			break;
		schedule();
	}
	__set_current_state(TASK_RUNNING);
	return 0;
}

/* Links 0 and 2 have vector 1, links 1 and 3 vector 2. */
static int poll_init(struct kunit *test)
{
	struct test_poll *t = vzalloc(sizeof(*t));
	struct ivpci_ctrl *ctrl[2];
	struct task_struct *task;
	unsigned int i, side;

	KUNIT_ASSERT_NOT_NULL(test, t);
	test->priv = t;
	spin_lock_init(&t->dibs.lock);
	t->client.ops = &test_client_ops;
	t->dibs.subs[0] = &t->client;
	t->dibs.dmb_clientid_arr = t->clients;
	t->iv.dibs = &t->dibs;
	t->iv.links = t->links;
	t->iv.nlinks = TEST_LINKS;
	t->iv.vectors = 3;
	t->iv.stats = alloc_percpu(struct ivpci_stats);
	KUNIT_ASSERT_TRUE(test, !!t->iv.stats);
	for (i = 0; i < TEST_LINKS; i++) {
		struct ivpci_link *link = &t->links[i];

		for (side = 0; side < 2; side++) {
			ctrl[side] = kunit_kzalloc(test, IVPCI_CTRL_SIZE,
						   GFP_KERNEL);
			KUNIT_ASSERT_NOT_NULL(test, ctrl[side]);
		}
		link->iv = &t->iv;
		link->index = i;
		link->s = vzalloc(sizeof(*link->s));
		KUNIT_ASSERT_NOT_NULL(test, link->s);
		link->s->slot_idx[0] = i + 1;
		ivpci_rx_init(&link->s->rx, ctrl[0], ctrl[1]);
		ivpci_tx_init(&t->tx[i], ctrl[1], ctrl[0]);
		__set_bit(i, t->iv.receiving);
		__set_bit(i, t->iv.irq[ivpci_vector(&t->iv, i)].links);
	}
	for (i = 0; i < t->iv.vectors; i++)
		t->iv.irq[i].iv = &t->iv;
	hrtimer_setup(&t->iv.guard, ivpci_guard, CLOCK_MONOTONIC,
		      HRTIMER_MODE_REL_SOFT);
	/* nothing is taken but by what a test calls */
	task = kthread_run(test_idle, NULL, "ivpci-test");
	KUNIT_ASSERT_FALSE(test, IS_ERR(task));
	t->iv.poller = task;
	return 0;
}

static void poll_exit(struct kunit *test)
{
	struct test_poll *t = test->priv;
	unsigned int i;

	if (!t)
		return;
	if (t->iv.poller) {
		kthread_stop(t->iv.poller);
		hrtimer_cancel(&t->iv.guard);
	}
	for (i = 0; i < TEST_LINKS; i++)
		vfree(t->links[i].s);
	free_percpu(t->iv.stats);
	vfree(t);
}

static void fill_ring(struct kunit *test, struct test_poll *t, unsigned int link)
{
	unsigned int i;

	for (i = 0; i < IVPCI_SIGNALS; i++)
		KUNIT_ASSERT_GE(test,
				ivpci_signal_post(&t->tx[link], 0, i % 16), 0);
}

static unsigned int taken(const struct test_poll *t)
{
	unsigned int i, n = 0;

	for (i = 0; i < TEST_LINKS; i++)
		n += t->signals[i];
	return n;
}

/* A doorbell has nothing to do with links whose peers ring another one. */
static void doorbell_of_its_links(struct kunit *test)
{
	struct test_poll *t = test->priv;
	unsigned int i;

	for (i = 0; i < TEST_LINKS; i++) {
		__set_bit(i, t->iv.attaching);
		KUNIT_ASSERT_GE(test, ivpci_signal_post(&t->tx[i], 0, 0), 0);
	}
	ivpci_irq_doorbell(0, &t->iv.irq[1]);
	for (i = 0; i < TEST_LINKS; i++) {
		KUNIT_EXPECT_EQ(test, t->kicked[i], i % 2 ? 0 : 1);
		KUNIT_EXPECT_EQ(test, t->signals[i], i % 2 ? 0 : 1);
		/* the registers are not read for it: that is an exit each */
		KUNIT_EXPECT_FALSE(test, t->links[i].look);
	}
	KUNIT_EXPECT_EQ(test, t->scans, 0);

	/* all peers may ring vector 0: only the device's news are there */
	ivpci_irq_change(0, &t->iv.irq[0]);
	KUNIT_EXPECT_EQ(test, t->scans, 1);
	for (i = 0; i < TEST_LINKS; i++)
		KUNIT_EXPECT_EQ(test, t->kicked[i], i % 2 ? 0 : 1);
}

/* Full rings are taken in turns, no more than a budget at a time. */
static void drain_in_turns(struct kunit *test)
{
	struct test_poll *t = test->priv;
	unsigned int i, n, rounds;

	for (i = 0; i < TEST_LINKS; i++)
		fill_ring(test, t, i);
	for (i = 0; i < TEST_LINKS; i++) {
		n = ivpci_drain(&t->iv, t->iv.receiving);
		KUNIT_EXPECT_EQ(test, n, IVPCI_BUDGET);
		KUNIT_EXPECT_EQ(test, taken(t), (i + 1) * IVPCI_BUDGET);
	}
	for (i = 0; i < TEST_LINKS; i++)
		KUNIT_EXPECT_EQ(test, t->signals[i], IVPCI_BUDGET);
	for (rounds = 0; rounds < 100; rounds++)
		if (!ivpci_drain(&t->iv, t->iv.receiving))
			break;
	KUNIT_EXPECT_EQ(test, taken(t), TEST_LINKS * IVPCI_SIGNALS);
}

/* What an interrupt takes has a bound, whatever the peers post meanwhile. */
static void doorbell_has_an_end(struct kunit *test)
{
	struct test_poll *t = test->priv;
	unsigned int i;

	for (i = 0; i < TEST_LINKS; i++)
		fill_ring(test, t, i);
	t->refill = true;
	ivpci_irq_doorbell(0, &t->iv.irq[1]);
	t->refill = false;
	KUNIT_EXPECT_LE(test, taken(t), TEST_AT_ONCE);
	KUNIT_EXPECT_GT(test, taken(t), 0);
	/* somebody else goes on: the thread, else the timer */
	KUNIT_EXPECT_TRUE(test, READ_ONCE(t->iv.handover));
	KUNIT_EXPECT_TRUE(test, READ_ONCE(t->iv.polling));
	KUNIT_EXPECT_TRUE(test, t->iv.guarded);
}

/* The timer that does so is a soft one: interrupts are on. */
static void guard_is_soft(struct kunit *test)
{
	struct test_poll *t = test->priv;

	ivpci_poll_stop(&t->iv);
	t->iv.poller = NULL;
	t->iv.pdev = kunit_kzalloc(test, sizeof(*t->iv.pdev), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, t->iv.pdev);
	t->iv.pdev->dev.init_name = "test";
	KUNIT_ASSERT_EQ(test, ivpci_poll_start(&t->iv), 0);
	KUNIT_EXPECT_TRUE(test, t->iv.guard.is_soft);
}

/* A peer that sends events without end is at fault, and not heard any more. */
static void flood_of_events(struct kunit *test)
{
	struct test_poll *t = test->priv;
	unsigned int i;

	for (i = 0; i < 2 * IVPCI_EVENTS_PER_SEC && !t->faults[1]; i++) {
		KUNIT_ASSERT_EQ(test, ivpci_event_post(&t->tx[1], 1, i), 0);
		ivpci_irq_doorbell(0, &t->iv.irq[2]);
	}
	KUNIT_EXPECT_EQ(test, t->faults[1], 1);
	KUNIT_EXPECT_LE(test, t->events, IVPCI_EVENTS_PER_SEC);
	KUNIT_EXPECT_FALSE(test, test_bit(1, t->iv.receiving));
	KUNIT_EXPECT_TRUE(test, test_bit(3, t->iv.receiving));
	KUNIT_EXPECT_EQ(test, t->faults[3], 0);
}

static struct kunit_case poll_cases[] = {
	KUNIT_CASE(doorbell_of_its_links),
	KUNIT_CASE(drain_in_turns),
	KUNIT_CASE(doorbell_has_an_end),
	KUNIT_CASE(guard_is_soft),
	KUNIT_CASE(flood_of_events),
	{ }
};

static struct kunit_suite poll_suite = {
	.name = "ivpci-poll",
	.init = poll_init,
	.exit = poll_exit,
	.test_cases = poll_cases,
};

kunit_test_suite(poll_suite);
