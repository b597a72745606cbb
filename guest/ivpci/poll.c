// SPDX-License-Identifier: GPL-2.0
/*
 * Receiving: interrupts while nobody polls, polling while it pays.
 *
 * An interrupt drains the rings at once, then wakes a thread that goes on to
 * poll them. The thread runs when its CPU has nothing else to do: it has the
 * lowest policy there is and gives way when anybody else wants to run. If it
 * does not come back soon, a timer looks into the rings in its place, for as
 * long as there is news, and has the peers ring their doorbells again after
 * that. So an idle CPU polls until that has not paid for a while, and a busy one
 * is interrupted, but not for each message of a stream.
 */

#include <linux/hrtimer.h>
#include <linux/interrupt.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sched/clock.h>
#include <uapi/linux/sched/types.h>

#include "ivpci.h"

#define IVPCI_BATCH		64
#define IVPCI_BUDGET		128	/* signals at a time, with interrupts off */
#define IVPCI_EVENTS_PER_SEC	512
#define IVPCI_STRAY_HITS	16
#define IVPCI_STRAY_REST	max(HZ / 50, 1)

/**
 * struct ivpci_stray - does the poller poll on the wrong CPU?
 * @cpu: where the sender was when something was last found
 * @hits: how often in a row it was there, and not here
 * @moved: when the poller last followed it (jiffies)
 */
struct ivpci_stray {
	int cpu;
	unsigned int hits;
	unsigned long moved;
};

static unsigned int poll_us = 100;
module_param(poll_us, uint, 0644);
MODULE_PARM_DESC(poll_us, "Upper bound of polling after the last activity, in us; 0: never poll (default 100)");

/* Where locks sleep, preemption stays on; there is no polling then. */
static void ivpci_keep_cpu(void)
{
	if (!IS_ENABLED(CONFIG_PREEMPT_RT))
		preempt_disable();
}

static void ivpci_yield_cpu(void)
{
	if (!IS_ENABLED(CONFIG_PREEMPT_RT))
		preempt_enable();
}

static u64 ivpci_poll_limit(void)
{
	if (IS_ENABLED(CONFIG_PREEMPT_RT))
		return 0;
	return READ_ONCE(poll_us) * (u64)NSEC_PER_USEC;
}

/* The first success counts little, the next more; failure as well. */
static void ivpci_poll_adapt(struct ivpci *iv, bool success)
{
	u64 limit = ivpci_poll_limit();
	u64 least = limit / 8;
	u64 ns = READ_ONCE(iv->poll_ns);

	if (success)
		ns = ns < least ? least : ns * 2;
	else
		ns = ns / 2 < least ? 0 : ns / 2;
	WRITE_ONCE(iv->poll_ns, min(ns, limit));
}

/**
 * ivpci_deliver() - hand an event to all DIBS clients
 * @iv: the device
 * @event: the event
 */
void ivpci_deliver(struct ivpci *iv, const struct dibs_event *event)
{
	unsigned long flags;
	int i;

	spin_lock_irqsave(&iv->dibs->lock, flags);
	for (i = 0; i < MAX_DIBS_CLIENTS; i++)
		if (iv->dibs->subs[i])
			iv->dibs->subs[i]->ops->handle_event(iv->dibs, event);
	spin_unlock_irqrestore(&iv->dibs->lock, flags);
}

/* No news from this link any more; its state machine shall see why. */
static void ivpci_stop_receiving(struct ivpci_link *link)
{
	__clear_bit(link->index, link->iv->receiving);
	ivpci_link_kick(link);
}

static void ivpci_receiving_fault(struct ivpci_link *link, const char *why)
{
	__clear_bit(link->index, link->iv->receiving);
	ivpci_link_fault(link, why);
}

static void ivpci_handle_signal(struct ivpci_link *link, u32 signal)
{
	u32 slot = FIELD_GET(IVPCI_SIGNAL_SLOT, signal);
	u16 mask = 1 << FIELD_GET(IVPCI_SIGNAL_INDEX, signal);
	struct dibs_dev *dibs = link->iv->dibs;
	u32 idx;
	u8 client;

	if (slot >= IVPCI_SLOTS || !link->s->slot_idx[slot])
		return;
	idx = link->s->slot_idx[slot] - 1;
	client = dibs->dmb_clientid_arr[idx];
	if (client != NO_DIBS_CLIENT && dibs->subs[client])
		dibs->subs[client]->ops->handle_irq(dibs, idx, mask);
}

/* Each event costs SMC memory: a peer must not send many for nothing. */
static bool ivpci_event_flood(struct ivpci_link *link)
{
	if (!link->event_count ||
	    time_after(jiffies, link->event_window + HZ)) {
		link->event_window = jiffies;
		link->event_count = 0;
	}
	return ++link->event_count > IVPCI_EVENTS_PER_SEC;
}

static unsigned int ivpci_drain_events(struct ivpci_link *link)
{
	struct dibs_dev *dibs = link->iv->dibs;
	struct dibs_event event = {
		.type = DIBS_SW_EVENT,
		.gid = link->peer.gid,
	};
	unsigned int n;
	int i, rc;

	for (n = 0; n < IVPCI_EVENTS; n++) {
		rc = ivpci_event_take(&link->s->rx, &event.subtype,
				      &event.data);
		if (!rc)
			break;
		if (rc < 0) {
			ivpci_receiving_fault(link, "its event ring overran");
			break;
		}
		if (ivpci_event_flood(link)) {
			ivpci_receiving_fault(link, "it floods us with events");
			break;
		}
		for (i = 0; i < MAX_DIBS_CLIENTS; i++)
			if (dibs->subs[i])
				dibs->subs[i]->ops->handle_event(dibs, &event);
	}
	return n;
}

static unsigned int ivpci_drain_link(struct ivpci_link *link,
				     unsigned int budget)
{
	struct ivpci_session *s = link->s;
	u32 signals[IVPCI_BATCH];
	unsigned int n = 0;
	int got, i;

	if (ivpci_rx_pending(&s->rx)) {
		while (n < budget) {
			got = ivpci_signal_take(&s->rx, signals,
						min(budget - n, IVPCI_BATCH));
			if (got < 0) {
				ivpci_receiving_fault(link,
						      "its signal ring overran");
				return n;
			}
			if (!got)
				break;
			for (i = 0; i < got; i++)
				ivpci_handle_signal(link, signals[i]);
			n += got;
		}
		ivpci_count(link->iv, IVPCI_SIGNALS_RECEIVED, n);
		got = ivpci_drain_events(link);
		ivpci_count(link->iv, IVPCI_EVENTS_RECEIVED, got);
		n += got;
	}
	if (!ivpci_peer_there(link))
		ivpci_stop_receiving(link);
	return n;
}

/* Take what has come over some links, up to the budget; then it is another's turn. */
static unsigned int ivpci_drain(struct ivpci *iv, const unsigned long *links)
{
	DECLARE_BITMAP(todo, IVPCI_LINKS);
	unsigned int i, n = 0;

	bitmap_and(todo, iv->receiving, links, iv->nlinks);
	for_each_set_bit_wrap(i, todo, iv->nlinks, iv->turn) {
		n += ivpci_drain_link(&iv->links[i], IVPCI_BUDGET - n);
		if (n >= IVPCI_BUDGET) {
			iv->turn = (i + 1) % iv->nlinks;
			break;
		}
	}
	iv->activity += n;
	return n;
}

/*
 * Have peers ring. Returns false if one posts faster than we can take: then the
 * doorbells stay off, and somebody has to look after it.
 */
static bool ivpci_arm(struct ivpci *iv, const unsigned long *links)
{
	bool pending;
	int tries;
	u32 i;

	for (tries = 0; tries < 4; tries++) {
		pending = false;
		for_each_and_bit(i, iv->receiving, links, iv->nlinks)
			pending |= ivpci_rx_arm(&iv->links[i].s->rx);
		if (!pending)
			return true;
		ivpci_drain(iv, links);
	}
	return false;
}

static void ivpci_disarm(struct ivpci *iv)
{
	unsigned int i;

	for_each_set_bit(i, iv->receiving, iv->nlinks)
		ivpci_rx_disarm(&iv->links[i].s->rx);
}

/**
 * ivpci_poll_kick() - have the thread look after the rings
 * @iv: the device
 */
void ivpci_poll_kick(struct ivpci *iv)
{
	WRITE_ONCE(iv->handover, true);
	wake_up_process(iv->poller);
}

/* Look after the rings again when polling has lasted long enough. */
static void ivpci_guard_rings(struct ivpci *iv)
{
	u64 limit = ivpci_poll_limit();

	if (iv->guarded)
		return;
	iv->guarded = true;
	hrtimer_start_range_ns(&iv->guard, ns_to_ktime(limit), limit,
			       HRTIMER_MODE_REL_SOFT);
}

/*
 * Arming has failed. It is the thread's turn, and if that gets no CPU it is the
 * timer's.
 */
static void ivpci_hand_over(struct ivpci *iv)
{
	iv->polling = true;
	iv->away_since = local_clock();
	ivpci_disarm(iv);
	ivpci_guard_rings(iv);
}

/**
 * ivpci_irq_doorbell() - a peer has rung
 * @irq: not used
 * @data: the vector
 *
 * Return: IRQ_HANDLED.
 */
irqreturn_t ivpci_irq_doorbell(int irq, void *data)
{
	struct ivpci_irq *vector = data;
	struct ivpci *iv = vector->iv;
	bool kick = false;
	unsigned int i, n;

	ivpci_count(iv, IVPCI_INTERRUPTS, 1);
	spin_lock(&iv->dibs->lock);
	for_each_and_bit(i, iv->attaching, vector->links, iv->nlinks)
		ivpci_link_kick(&iv->links[i]);
	n = ivpci_drain(iv, vector->links);
	if (!iv->polling && iv->away_since && n && ivpci_poll_limit()) {
		/* there may be more before the thread has its turn */
		iv->polling = true;
		ivpci_disarm(iv);
		ivpci_guard_rings(iv);
	} else if (!iv->polling) {
		u64 now = local_clock();

		kick = !ivpci_arm(iv, vector->links);
		if (kick)
			ivpci_hand_over(iv);
		/* would polling have found it? */
		if (iv->asleep_since)
			ivpci_poll_adapt(iv, n && now - iv->asleep_since <
						  ivpci_poll_limit());
		if (iv->poll_ns)
			kick = true;
		iv->asleep_since = kick ? 0 : now;
	}
	spin_unlock(&iv->dibs->lock);
	if (kick)
		ivpci_poll_kick(iv);
	return IRQ_HANDLED;
}

/**
 * ivpci_irq_change() - a link has changed, or so it seems
 * @irq: not used
 * @data: the vector
 *
 * Return: IRQ_HANDLED.
 */
irqreturn_t ivpci_irq_change(int irq, void *data)
{
	struct ivpci_irq *vector = data;

	ivpci_links_scan(vector->iv);
	return ivpci_irq_doorbell(irq, data);
}

static bool ivpci_others_want_cpu(void)
{
	return test_thread_flag(TIF_NEED_RESCHED) ||
	       test_thread_flag(TIF_NEED_RESCHED_LAZY);
}

static void ivpci_begin_polling(struct ivpci *iv)
{
	spin_lock_irq(&iv->dibs->lock);
	iv->polling = true;
	iv->asleep_since = 0;
	iv->away_since = 0;
	ivpci_disarm(iv);
	spin_unlock_irq(&iv->dibs->lock);
}

static void ivpci_end_polling(struct ivpci *iv)
{
	/* what is drained here is handled when bottom halves are on again */
	local_bh_disable();
	spin_lock_irq(&iv->dibs->lock);
	if (ivpci_arm(iv, iv->receiving)) {
		iv->polling = false;
		iv->asleep_since = local_clock();
	} else {
		ivpci_hand_over(iv);
		WRITE_ONCE(iv->handover, true);
	}
	spin_unlock_irq(&iv->dibs->lock);
	local_bh_enable();
}

/*
 * The thread has not come back in time: others keep its CPU. As long as there
 * is news each time, it is taken here, without doorbells: else a peer would ring
 * for each of its messages, and be slowed down by that, for as long as whoever
 * they are for is too busy with them to sleep.
 *
 * A timer is expensive for a guest to set, so one that runs is left alone when
 * the thread comes back and gives way again: it goes on from here if it has to.
 */
static enum hrtimer_restart ivpci_guard(struct hrtimer *guard)
{
	struct ivpci *iv = container_of(guard, struct ivpci, guard);
	u64 limit = ivpci_poll_limit();
	unsigned long flags;
	s64 left = 0;

	ivpci_count(iv, IVPCI_GUARDS, 1);
	spin_lock_irqsave(&iv->dibs->lock, flags);
	iv->guarded = false;
	if (iv->away_since) {
		left = iv->away_since + limit - local_clock();
		if (left <= 0) {
			if (ivpci_drain(iv, iv->receiving) && limit)
				left = limit;
			else if (ivpci_arm(iv, iv->receiving))
				iv->polling = false;
			else
				left = max(limit, NSEC_PER_MSEC);
		}
	}
	if (left > 0) {
		iv->guarded = true;
		/* forwarding does nothing in between soft and hard expiry */
		hrtimer_set_expires_range_ns(guard,
					     ktime_add_ns(ktime_get(), left),
					     limit);
	}
	spin_unlock_irqrestore(&iv->dibs->lock, flags);
	return left > 0 ? HRTIMER_RESTART : HRTIMER_NORESTART;
}

/*
 * Let others have the CPU. They are likely to be those that were just woken, and
 * to sleep again soon: the doorbells stay off for as long as polling lasts, so
 * that a stream is not interrupted for each of its messages.
 */
static void ivpci_give_way(struct ivpci *iv, struct ivpci_stray *move)
{
	spin_lock_irq(&iv->dibs->lock);
	iv->away_since = local_clock();
	ivpci_guard_rings(iv);
	spin_unlock_irq(&iv->dibs->lock);
	ivpci_yield_cpu();
	if (move) {
		set_cpus_allowed_ptr(current, cpumask_of(move->cpu));
		move->moved = jiffies;
	}
	schedule();
	ivpci_keep_cpu();
	ivpci_begin_polling(iv);
}

static bool ivpci_poll_once(struct ivpci *iv)
{
	unsigned int n;

	local_bh_disable();
	spin_lock_irq(&iv->dibs->lock);
	n = ivpci_drain(iv, iv->receiving);
	spin_unlock_irq(&iv->dibs->lock);
	local_bh_enable(); /* runs SMC's tasklets */
	ivpci_count(iv, IVPCI_POLLS, 1);
	return n;
}

/*
 * Whoever sends is about to wait for an answer, most likely: the CPU to poll on
 * is the one that it leaves idle, so that it is woken without an interrupt to
 * another CPU. Follow it when it has stayed somewhere else for a while.
 */
static bool ivpci_should_move(struct ivpci *iv, struct ivpci_stray *stray)
{
	int cpu = READ_ONCE(iv->sender);

	if (cpu == raw_smp_processor_id() || cpu != stray->cpu) {
		stray->cpu = cpu;
		stray->hits = 0;
		return false;
	}
	return ++stray->hits >= IVPCI_STRAY_HITS &&
	       time_after(jiffies, stray->moved + IVPCI_STRAY_REST);
}

/*
 * Poll until nothing has come for poll_ns of our own running time. Preemption
 * is off meanwhile: who is not running cannot poll.
 */
static void ivpci_poll_session(struct ivpci *iv, struct ivpci_stray *stray)
{
	u64 activity = 0, idle = 0, hits = 0, now, last;
	bool move = false;

	ivpci_keep_cpu();
	ivpci_begin_polling(iv);
	last = local_clock();
	while (!kthread_should_stop()) {
		now = local_clock();
		if (ivpci_poll_once(iv)) {
			idle = 0;
			hits++;
			move = ivpci_should_move(iv, stray);
		} else if (activity != READ_ONCE(iv->activity)) {
			/* interrupts found something while we were away */
			activity = READ_ONCE(iv->activity);
			idle = 0;
		} else {
			idle += now - last;
			if (idle > READ_ONCE(iv->poll_ns))
				break;
		}
		last = now;
		if (move || ivpci_others_want_cpu()) {
			ivpci_give_way(iv, move ? stray : NULL);
			move = false;
			last = local_clock();
		}
		cpu_relax();
	}
	ivpci_count(iv, IVPCI_POLL_HITS, hits);
	ivpci_poll_adapt(iv, hits);
	ivpci_end_polling(iv);
	ivpci_yield_cpu();
}

static int ivpci_poller(void *data)
{
	struct ivpci_stray stray = { .cpu = -1, .moved = jiffies };
	struct ivpci *iv = data;

	for (;;) {
		set_current_state(TASK_IDLE);
		if (kthread_should_stop())
			break;
		if (xchg(&iv->handover, false)) {
			__set_current_state(TASK_RUNNING);
			ivpci_poll_session(iv, &stray);
			cond_resched();
		} else {
			schedule();
		}
	}
	__set_current_state(TASK_RUNNING);
	return 0;
}

/**
 * ivpci_poll_start() - create the thread
 * @iv: the device
 *
 * Return: 0 or an error.
 */
int ivpci_poll_start(struct ivpci *iv)
{
	const struct sched_attr attr = {
		.size = sizeof(attr),
		.sched_policy = SCHED_IDLE,
	};
	struct task_struct *task;

	task = kthread_create(ivpci_poller, iv, "ivpci/%s",
			      pci_name(iv->pdev));
	if (IS_ERR(task))
		return PTR_ERR(task);
	sched_setattr_nocheck(task, &attr);
	/* soft: it may have much to do */
	hrtimer_setup(&iv->guard, ivpci_guard, CLOCK_MONOTONIC,
		      HRTIMER_MODE_REL_SOFT);
	iv->poller = task;
	wake_up_process(task);
	return 0;
}

/**
 * ivpci_poll_stop() - end the thread
 * @iv: the device, with interrupts off
 */
void ivpci_poll_stop(struct ivpci *iv)
{
	kthread_stop(iv->poller);
	hrtimer_cancel(&iv->guard);
}
