// SPDX-License-Identifier: GPL-2.0
/*
 * The life of a link: claim and map its window, attach, go up, end, let go.
 *
 * Each link has one work item, which alone runs its state machine. Everything
 * else only kicks it.
 */

#include <linux/kobject.h>
#include <linux/random.h>
#include <linux/wait.h>

#include "ivpci.h"
#include "regs.h"

/* SMC may have missed that it is to let go (it allocates memory to hear it) */
#define IVPCI_REMIND	HZ
/* SMC has heard it by then: what is still in use, programs keep */
#define IVPCI_PATIENCE	(2 * HZ)
/* When to try again what has failed */
#define IVPCI_RETRY	(10 * HZ)

static void ivpci_bit(struct ivpci_link *link, unsigned long *map, bool on)
{
	unsigned long flags;

	spin_lock_irqsave(&link->iv->dibs->lock, flags);
	__assign_bit(link->index, map, on);
	spin_unlock_irqrestore(&link->iv->dibs->lock, flags);
}

static void ivpci_set_peer(struct ivpci_link *link,
			   const struct ivpci_header *hdr)
{
	spin_lock_bh(&link->lock);
	if (hdr)
		link->peer = *hdr;
	else
		memset(&link->peer, 0, sizeof(link->peer));
	spin_unlock_bh(&link->lock);
}

/* Publish a fresh epoch. Nothing of an old session uses the window any more. */
static void ivpci_begin(struct ivpci_link *link)
{
	struct ivpci_session *s = link->s;
	struct ivpci *iv = link->iv;
	u32 epoch;

	WRITE_ONCE(s->own->peer_epoch, 0);
	WRITE_ONCE(s->own->epoch, 0);
	virt_wmb(); /* whoever sees what we clear sees that the epoch is gone */
	memset(&s->own->position, 0,
	       sizeof(*s->own) - offsetof(struct ivpci_ctrl, position));
	s->own->magic = cpu_to_le64(IVPCI_MAGIC);
	s->own->version = cpu_to_le32(IVPCI_VERSION);
	s->own->position = cpu_to_le32(iv->position);
	s->own->vector = cpu_to_le32(ivpci_vector(iv, link->index));
	s->own->window_shift = cpu_to_le32(link->shift);
	s->own->gid = iv->dibs->gid;
	s->own->slots = cpu_to_le32(IVPCI_SLOTS);
	s->own->tag = cpu_to_le32(link->index);
	/* a peer that is up before us must not find us awake */
	s->own->signal_wake = 0;

	ivpci_set_peer(link, NULL);
	WRITE_ONCE(link->faulty, false);
	do {
		epoch = get_random_u32();
	} while (!epoch || epoch == link->epoch);
	link->epoch = epoch;
	link->since = jiffies;
	/* release: who sees the epoch sees the header */
	virt_store_release(&s->own->epoch, cpu_to_le32(epoch));
	ivpci_bit(link, iv->attaching, true);
	/*
	 * Our epoch before the peer's is read: who finds the other not attached
	 * does not ring, so of two that begin at once one has to find the other.
	 * And before peer_epoch is set again, see ivpci_peer_there().
	 */
	virt_mb();
}

/* May this peer have this GID? SMC compares the second halves only. */
static const char *ivpci_check_gid(struct ivpci_link *link, const uuid_t *gid)
{
	struct ivpci *iv = link->iv;
	const char *why = NULL;
	unsigned int i;

	if (!memcmp(gid->b + 8, iv->dibs->gid.b + 8, 8))
		return "it has our GID";
	if (iv->regs && !ivpci_gid_bound(gid, link->peer_device))
		return "its GID is not that of its device";

	for (i = 0; i < iv->nlinks && !why; i++) {
		struct ivpci_link *other = &iv->links[i];

		if (other == link)
			continue;
		spin_lock_bh(&other->lock);
		if (other->s && !memcmp(gid->b + 8, other->peer.gid.b + 8, 8))
			why = "another peer has its GID";
		spin_unlock_bh(&other->lock);
	}
	return why;
}

/* Accept the peer's epoch if it has a new one that is fit. */
static void ivpci_accept(struct ivpci_link *link)
{
	struct ivpci_session *s = link->s;
	struct ivpci_header hdr;
	const char *why;

	why = ivpci_read_header(s->peer, link->shift, &hdr);
	if (!why && hdr.epoch == link->peer.epoch)
		return;
	if (!why && hdr.vector >= link->peer_vectors)
		why = "it has no such vector";

	mutex_lock(&link->iv->accept);
	if (!why)
		why = ivpci_check_gid(link, &hdr.gid);
	ivpci_set_peer(link, why ? NULL : &hdr);
	mutex_unlock(&link->iv->accept);

	link->why = why;
	WRITE_ONCE(s->own->peer_epoch, cpu_to_le32(link->peer.epoch));
	ivpci_link_ring(link);
}

/* Programs that care for their connections may want to know. */
static void ivpci_announce(struct ivpci_link *link, const char *state)
{
	struct device *dev = &link->iv->pdev->dev;
	char number[32], what[32], peer[64];
	char *env[4] = { number, what, peer };

	snprintf(number, sizeof(number), "IVPCI_LINK=%u", link->index);
	snprintf(what, sizeof(what), "IVPCI_LINK_STATE=%s", state);
	snprintf(peer, sizeof(peer), "IVPCI_PEER=%pUb", &link->peer.gid);
	kobject_uevent_env(&dev->kobj, KOBJ_CHANGE, env);
	dev_info_ratelimited(dev, "link %u: %s, peer %pUb\n", link->index,
			     state, &link->peer.gid);
}

static void ivpci_go_up(struct ivpci_link *link)
{
	struct ivpci_session *s = link->s;
	struct ivpci *iv = link->iv;
	unsigned long flags;
	bool pending = false;

	spin_lock_irqsave(&iv->dibs->lock, flags);
	ivpci_rx_init(&s->rx, s->own, s->peer);
	memset(s->slot_idx, 0, sizeof(s->slot_idx));
	link->event_count = 0;
	if (iv->polling)
		ivpci_rx_disarm(&s->rx);
	else
		pending = ivpci_rx_arm(&s->rx);
	__clear_bit(link->index, iv->attaching);
	__set_bit(link->index, iv->receiving);
	spin_unlock_irqrestore(&iv->dibs->lock, flags);

	spin_lock_bh(&link->lock);
	ivpci_tx_init(&s->tx, s->own, s->peer);
	ivpci_dmbs_begin(&s->dmbs, s->own, s->peer);
	ivpci_remotes_init(&s->remotes, s->own, s->peer, link->shift,
			   link->side);
	/* last: who finds the link up registers DMBs at once */
	link->up = true;
	spin_unlock_bh(&link->lock);
	if (pending)
		ivpci_poll_kick(iv);

	ivpci_count(iv, IVPCI_LINK_UPS, 1);
	ivpci_announce(link, "up");
}

static void ivpci_tell_smc(struct ivpci_link *link)
{
	struct dibs_event event = {
		.type = DIBS_DEV_EVENT,
		.subtype = DIBS_DEV_DISABLED,
		.gid = link->peer.gid,
	};

	ivpci_deliver(link->iv, &event);
}

static void ivpci_back_off(struct ivpci_link *link)
{
	link->backoff = ivpci_backoff(link->backoff, jiffies - link->since,
				      READ_ONCE(link->faulty));
	link->since = jiffies;
	link->not_before = link->since + link->backoff;
}

static void ivpci_go_down(struct ivpci_link *link)
{
	struct ivpci *iv = link->iv;

	spin_lock_bh(&link->lock);
	link->up = false;
	spin_unlock_bh(&link->lock);
	ivpci_bit(link, iv->receiving, false);

	/* lets the peer end it at the same time */
	WRITE_ONCE(link->s->own->peer_epoch, 0);
	ivpci_link_ring(link);

	ivpci_back_off(link);
	ivpci_count(iv, IVPCI_LINK_DOWNS, 1);
	ivpci_announce(link, "down");
	ivpci_tell_smc(link);
	link->told = jiffies;
}

/* Our epoch goes: nothing of ours uses what is the peer's any more. */
static void ivpci_leave(struct ivpci_link *link)
{
	WRITE_ONCE(link->s->own->peer_epoch, 0);
	/* release: all that we did in the window comes before */
	virt_store_release(&link->s->own->epoch, 0);
	ivpci_link_ring(link);
}

/* Run again later at the latest. */
static bool ivpci_later(struct ivpci_link *link, unsigned long delay)
{
	queue_delayed_work(link->iv->wq, &link->work, delay);
	return false;
}

/* Is it too early to begin? Doorbells and vector 0 do not change that. */
static bool ivpci_too_early(struct ivpci_link *link)
{
	unsigned long now = jiffies;

	if (!time_before(now, link->not_before))
		return false;
	ivpci_later(link, link->not_before - now);
	return true;
}

/*
 * SMC was told to end what uses the link. What it has not given back after a
 * while belongs to sockets and pipes that programs keep. None of that writes
 * into the peer's memory, and it reads nothing but ours, so the link can begin
 * again around it. It cannot be unmapped. The peer's GID is free: the peer may
 * come back elsewhere.
 */
static bool ivpci_end(struct ivpci_link *link)
{
	bool stopping = ivpci_stopping(link->iv) || !link->there;
	struct ivpci_usage use;

	ivpci_link_usage(link, &use);
	if (ivpci_used(&use) && link->peer.epoch) {
		if (!time_before(jiffies, link->told + IVPCI_REMIND)) {
			ivpci_tell_smc(link);
			link->told = jiffies;
		}
		if (time_before(jiffies, link->since + IVPCI_PATIENCE))
			return ivpci_later(link, IVPCI_REMIND);
		dev_info_ratelimited(&link->iv->pdev->dev,
				     "link %u: programs keep " IVPCI_USAGE "\n",
				     link->index, use.dmbs + use.remotes,
				     use.folios);
	}
	if (use.remotes) {
		ivpci_set_peer(link, NULL);
		return ivpci_later(link, IVPCI_REMIND);
	}
	if (!stopping) {
		if (ivpci_too_early(link))
			return false;
		ivpci_begin(link);
		link->state = IVPCI_ATTACHING;
		return true;
	}
	ivpci_leave(link);
	ivpci_set_peer(link, NULL);
	if (ivpci_used(&use))
		return ivpci_later(link, IVPCI_REMIND);
	ivpci_window_close(link);
	link->look = true;
	link->state = IVPCI_DOWN;
	wake_up_all(&link->iv->quiet);
	return true;
}

/**
 * ivpci_peer_there() - are the two sides still those that accepted each other?
 * @link: the link
 *
 * A peer that begins again clears peer_epoch, changes epoch, and may then accept
 * our epoch as before: epoch has to be read last, or all seems to be well.
 *
 * Return: true if they are.
 */
bool ivpci_peer_there(struct ivpci_link *link)
{
	const struct ivpci_ctrl *peer = link->s->peer;

	/* acquire: epoch is as new; pairs with ivpci_begin() */
	return le32_to_cpu(virt_load_acquire(&peer->peer_epoch)) == link->epoch &&
	       le32_to_cpu(READ_ONCE(peer->epoch)) == link->peer.epoch;
}

/* One step of the state machine. Returns true if there may be another. */
static bool ivpci_step(struct ivpci_link *link)
{
	bool stopping = ivpci_stopping(link->iv);

	/* the registers are read if the device says so, not for a doorbell */
	if (xchg(&link->look, false))
		link->there = ivpci_window_there(link);

	switch (link->state) {
	case IVPCI_DOWN:
		if (stopping || !link->there || ivpci_too_early(link))
			return false;
		link->why = ivpci_window_open(link);
		if (link->why) {
			/* if it has gone meanwhile, the device will say more */
			link->there = ivpci_window_there(link);
			if (!link->there)
				return false;
			dev_err_ratelimited(&link->iv->pdev->dev, "link %u: %s\n",
					    link->index, link->why);
			link->not_before = jiffies + IVPCI_RETRY;
			return ivpci_later(link, IVPCI_RETRY);
		}
		ivpci_begin(link);
		link->state = IVPCI_ATTACHING;
		return true;

	case IVPCI_ATTACHING:
		if (stopping || !link->there) {
			ivpci_bit(link, link->iv->attaching, false);
			ivpci_back_off(link);
			link->state = IVPCI_ENDING;
			return true;
		}
		ivpci_accept(link);
		if (!link->peer.epoch || !ivpci_peer_there(link))
			return false;
		ivpci_go_up(link);
		link->state = IVPCI_UP;
		return true;

	case IVPCI_UP:
		if (!stopping && !READ_ONCE(link->faulty) &&
		    ivpci_peer_there(link) && link->there)
			return false;
		ivpci_go_down(link);
		link->state = IVPCI_ENDING;
		return true;

	case IVPCI_ENDING:
		return ivpci_end(link);
	}
	return false;
}

/**
 * ivpci_link_work() - run the state machine of a link
 * @work: the link's
 */
void ivpci_link_work(struct work_struct *work)
{
	struct ivpci_link *link = container_of(to_delayed_work(work),
					       struct ivpci_link, work);
	int steps;

	/* a peer that makes us run in circles gets no more than its turn */
	for (steps = 0; steps < 8; steps++)
		if (!ivpci_step(link))
			return;
	ivpci_later(link, 1);
}

/**
 * ivpci_link_kick() - have the state machine look after a link
 * @link: the link
 *
 * Context: any.
 */
void ivpci_link_kick(struct ivpci_link *link)
{
	mod_delayed_work(link->iv->wq, &link->work, 0);
}

/**
 * ivpci_link_fault() - the peer has done what it must not do
 * @link: the link, which ends
 * @why: the reason
 *
 * Context: any, while the session cannot go away.
 */
void ivpci_link_fault(struct ivpci_link *link, const char *why)
{
	virt_rmb(); /* what made no sense before epoch */
	/* a peer that begins again clears its rings: that is no fault */
	if (le32_to_cpu(READ_ONCE(link->s->peer->epoch)) == link->peer.epoch &&
	    !xchg(&link->faulty, true)) {
		ivpci_count(link->iv, IVPCI_PEER_FAULTS, 1);
		dev_warn_ratelimited(&link->iv->pdev->dev,
				     "link %u: the peer is at fault: %s\n",
				     link->index, why);
	}
	ivpci_link_kick(link);
}

/**
 * ivpci_link_released() - SMC has let go of something of a link
 * @link: the link
 */
void ivpci_link_released(struct ivpci_link *link)
{
	if (!READ_ONCE(link->up))
		ivpci_link_kick(link);
}

/**
 * ivpci_link_ring() - interrupt the peer
 * @link: the link
 */
void ivpci_link_ring(struct ivpci_link *link)
{
	struct ivpci *iv = link->iv;
	u32 vector = READ_ONCE(link->peer.vector);

	/* who never attached is not asleep either */
	if (!READ_ONCE(link->peer.epoch))
		return;
	if (iv->regs)
		writel(0, iv->doorbells + link->index * iv->doorbell_stride +
			  4 * vector);
	else
		writel(READ_ONCE(link->peer.position) << 16 | vector,
		       iv->bar0 + IVPCI_REG_DOORBELL);
	ivpci_count(iv, IVPCI_DOORBELLS, 1);
}

/**
 * ivpci_state_name() - what to call a state
 * @state: the state
 *
 * Return: its name.
 */
const char *ivpci_state_name(enum ivpci_state state)
{
	static const char * const names[] = {
		[IVPCI_DOWN] = "down",
		[IVPCI_ATTACHING] = "attaching",
		[IVPCI_UP] = "up",
		[IVPCI_ENDING] = "ending",
	};

	return names[state];
}
