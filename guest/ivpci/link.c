// SPDX-License-Identifier: GPL-2.0
/*
 * The life of a link: claim and map its window, attach, go up, end, let go.
 *
 * Each link has one work item, which alone runs its state machine. Everything
 * else only kicks it.
 */

#include <linux/delay.h>
#include <linux/kobject.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/random.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "ivpci.h"
#include "regs.h"

/* SMC may have missed that it is to let go (it allocates memory to hear it) */
#define IVPCI_REMIND	HZ
/* A peer that was at fault is not spoken to for so long */
#define IVPCI_PENANCE	HZ

static u32 ivpci_link_reg(struct ivpci_link *link, u32 reg)
{
	struct ivpci *iv = link->iv;

	return readl(iv->table + link->index * iv->table_stride + reg);
}

/* Is the window that we have claimed, or could claim, still there? */
static bool ivpci_window_there(struct ivpci_link *link)
{
	if (!link->iv->regs)
		return true;
	return ivpci_link_reg(link, IVSMC_LINK_STATE) == IVSMC_STATE_UP &&
	       (!link->generation ||
		ivpci_link_reg(link, IVSMC_LINK_GENERATION) == link->generation);
}

static bool ivpci_claim(struct ivpci_link *link)
{
	struct ivpci *iv = link->iv;
	phys_addr_t bar = pci_resource_start(iv->pdev, 2);
	void __iomem *claim;
	u32 generation;

	if (!iv->regs) {
		link->start = bar;
		link->shift = iv->window_shift;
		link->side = ivpci_side < 0 ? iv->position & 1 : ivpci_side;
		link->peer_vectors = IVPCI_VECTORS;
		return true;
	}

	claim = iv->table + link->index * iv->table_stride + IVSMC_LINK_CLAIM;
	generation = ivpci_link_reg(link, IVSMC_LINK_GENERATION);
	writel(generation, claim);
	if (!generation || readl(claim) != generation)
		return false;
	link->generation = generation;
	link->start = bar + ((u64)link->index << iv->window_shift);
	link->shift = ivpci_link_reg(link, IVSMC_LINK_WINDOW_SHIFT);
	link->side = ivpci_link_reg(link, IVSMC_LINK_SIDE);
	link->peer_vectors = ivpci_link_reg(link, IVSMC_LINK_VECTORS);
	if (link->side <= 1 && link->shift >= IVPCI_SHIFT_MIN &&
	    link->shift <= iv->window_shift)
		return true;

	dev_err(&iv->pdev->dev, "link %u: the device says nonsense\n",
		link->index);
	writel(0, claim);
	link->generation = 0;
	return false;
}

static void ivpci_unclaim(struct ivpci_link *link)
{
	struct ivpci *iv = link->iv;

	if (iv->regs)
		writel(0, iv->table + link->index * iv->table_stride +
			  IVSMC_LINK_CLAIM);
	link->generation = 0;
}

/* Does a pipe, or whatever else took a reference, still use these pages? */
static bool ivpci_folio_busy(struct ivpci_session *s, u64 off)
{
	return folio_ref_count(virt_to_folio(s->win + off)) > 1;
}

static bool ivpci_dmb_busy(struct ivpci_dmbs *dmbs, const struct ivpci_dmb *dmb)
{
	return ivpci_folio_busy(container_of(dmbs, struct ivpci_session, dmbs),
				dmb->off);
}

static bool ivpci_open(struct ivpci_link *link)
{
	struct device *dev = &link->iv->pdev->dev;
	struct ivpci_session *s;
	void *win;

	if (!ivpci_claim(link))
		return false;

	s = vzalloc(sizeof(*s));
	if (!s)
		goto err_claim;
	if (ivpci_dmbs_init(&s->dmbs, link->shift, link->side))
		goto err_session;
	s->dmbs.busy = ivpci_dmb_busy;

	s->pgmap.type = MEMORY_DEVICE_GENERIC;
	s->pgmap.range.start = link->start;
	s->pgmap.range.end = link->start + (1ULL << link->shift) - 1;
	s->pgmap.nr_range = 1;
	/* splice wants all of a DMB in one folio; no DMB crosses 2 MiB */
	s->pgmap.vmemmap_shift = IVPCI_SHIFT_MIN - PAGE_SHIFT;
	win = memremap_pages(&s->pgmap, dev_to_node(dev));
	if (IS_ERR(win)) {
		dev_err(dev, "link %u: cannot map the window: %pe\n",
			link->index, win);
		goto err_dmbs;
	}
	s->win = win;
	s->own = win + link->side * IVPCI_CTRL_SIZE;
	s->peer = win + !link->side * IVPCI_CTRL_SIZE;

	spin_lock_bh(&link->lock);
	link->s = s;
	spin_unlock_bh(&link->lock);
	return true;

err_dmbs:
	ivpci_dmbs_exit(&s->dmbs);
err_session:
	vfree(s);
err_claim:
	ivpci_unclaim(link);
	return false;
}

static void ivpci_close(struct ivpci_link *link)
{
	struct ivpci_session *s = link->s;

	spin_lock_bh(&link->lock);
	link->s = NULL;
	spin_unlock_bh(&link->lock);

	WRITE_ONCE(s->own->peer_epoch, 0);
	/* release: all that we did in the window comes before */
	virt_store_release(&s->own->epoch, 0);
	ivpci_link_ring(link);
	memunmap_pages(&s->pgmap);
	ivpci_dmbs_exit(&s->dmbs);
	vfree(s);
	ivpci_unclaim(link);
}

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

/* The vector that the peer shall ring. */
static u32 ivpci_vector(const struct ivpci_link *link)
{
	u32 shared = link->iv->vectors - 1;

	return shared ? 1 + link->index % shared : 0;
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
	s->own->vector = cpu_to_le32(ivpci_vector(link));
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
	__le32 half[2];

	if (!memcmp(gid->b + 8, iv->dibs->gid.b + 8, 8))
		return "it has our GID";

	if (iv->regs) {
		half[0] = cpu_to_le32(ivpci_link_reg(link, IVSMC_LINK_GID));
		half[1] = cpu_to_le32(ivpci_link_reg(link, IVSMC_LINK_GID + 4));
		if (memcmp(gid, half, sizeof(half)))
			return "its GID is not that of its device";
	}

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
	dev_info(dev, "link %u: %s, peer %pUb\n", link->index, state,
		 &link->peer.gid);
}

static void ivpci_go_up(struct ivpci_link *link)
{
	struct ivpci_session *s = link->s;
	struct ivpci *iv = link->iv;
	unsigned long flags;
	bool pending = false;

	spin_lock_bh(&link->lock);
	ivpci_tx_init(&s->tx, s->own, s->peer);
	ivpci_dmbs_reset(&s->dmbs, s->own, s->peer);
	ivpci_remotes_init(&s->remotes, s->own, s->peer, link->shift,
			   link->side);
	link->up = true;
	spin_unlock_bh(&link->lock);

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

	link->not_before = jiffies +
			   (READ_ONCE(link->faulty) ? IVPCI_PENANCE : 0);
	ivpci_count(iv, IVPCI_LINK_DOWNS, 1);
	ivpci_announce(link, "down");
	ivpci_tell_smc(link);
}

/* Has all that used the session ended? */
static bool ivpci_let_go(struct ivpci_link *link)
{
	struct ivpci_session *s = link->s;
	bool free;
	u64 off;

	spin_lock_bh(&link->lock);
	free = !s->dmbs.live && !s->remotes.held;
	spin_unlock_bh(&link->lock);
	for (off = 0; free && off < 1ULL << link->shift;
	     off += 1ULL << IVPCI_SHIFT_MIN)
		free = !ivpci_folio_busy(s, off);
	return free;
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
	bool leaving = READ_ONCE(link->iv->leaving);
	unsigned long now = jiffies;

	switch (link->state) {
	case IVPCI_DOWN:
		if (leaving || !ivpci_window_there(link) || !ivpci_open(link))
			return false;
		ivpci_begin(link);
		link->state = IVPCI_ATTACHING;
		return true;

	case IVPCI_ATTACHING:
		if (leaving || !ivpci_window_there(link)) {
			ivpci_bit(link, link->iv->attaching, false);
			ivpci_close(link);
			link->state = IVPCI_DOWN;
			return true;
		}
		ivpci_accept(link);
		if (!link->peer.epoch || !ivpci_peer_there(link))
			return false;
		ivpci_go_up(link);
		link->state = IVPCI_UP;
		return true;

	case IVPCI_UP:
		if (!leaving && !READ_ONCE(link->faulty) &&
		    ivpci_peer_there(link) && ivpci_window_there(link))
			return false;
		ivpci_go_down(link);
		link->state = IVPCI_ENDING;
		return true;

	case IVPCI_ENDING:
		if (!ivpci_let_go(link)) {
			ivpci_tell_smc(link);
			queue_delayed_work(link->iv->wq, &link->work,
					   IVPCI_REMIND);
			return false;
		}
		if (leaving || !ivpci_window_there(link)) {
			ivpci_close(link);
			link->state = IVPCI_DOWN;
			return true;
		}
		if (time_before(now, link->not_before)) {
			queue_delayed_work(link->iv->wq, &link->work,
					   link->not_before - now);
			return false;
		}
		ivpci_begin(link);
		link->state = IVPCI_ATTACHING;
		return true;
	}
	return false;
}

static void ivpci_link_work(struct work_struct *work)
{
	struct ivpci_link *link = container_of(to_delayed_work(work),
					       struct ivpci_link, work);
	int steps;

	/* a peer that makes us run in circles gets no more than its turn */
	for (steps = 0; steps < 8; steps++)
		if (!ivpci_step(link))
			return;
	queue_delayed_work(link->iv->wq, &link->work, 1);
}

static void ivpci_scan(struct work_struct *work)
{
	struct ivpci *iv = container_of(work, struct ivpci, scan);
	unsigned int i;

	ivpci_follow(iv);
	for (i = 0; i < iv->nlinks; i++)
		ivpci_link_kick(&iv->links[i]);
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

/**
 * ivpci_links_init() - allocate the links
 * @iv: the device
 *
 * Return: 0 or -ENOMEM.
 */
int ivpci_links_init(struct ivpci *iv)
{
	unsigned int i;

	iv->links = kvcalloc(iv->nlinks, sizeof(*iv->links), GFP_KERNEL);
	if (!iv->links)
		return -ENOMEM;
	iv->wq = alloc_workqueue("ivpci-%s", WQ_UNBOUND, 0,
				 pci_name(iv->pdev));
	if (!iv->wq) {
		kvfree(iv->links);
		return -ENOMEM;
	}
	mutex_init(&iv->accept);
	INIT_WORK(&iv->scan, ivpci_scan);
	for (i = 0; i < iv->nlinks; i++) {
		struct ivpci_link *link = &iv->links[i];

		link->iv = iv;
		link->index = i;
		spin_lock_init(&link->lock);
		INIT_DELAYED_WORK(&link->work, ivpci_link_work);
	}
	return 0;
}

/**
 * ivpci_links_start() - begin to look for peers
 * @iv: the device, with interrupts on
 */
void ivpci_links_start(struct ivpci *iv)
{
	queue_work(iv->wq, &iv->scan);
}

/**
 * ivpci_links_stop() - leave all peers
 * @iv: the device; SMC does not use it any more
 */
void ivpci_links_stop(struct ivpci *iv)
{
	unsigned int i;

	WRITE_ONCE(iv->leaving, true);
	cancel_work_sync(&iv->scan);
	for (i = 0; i < iv->nlinks; i++) {
		struct ivpci_link *link = &iv->links[i];

		ivpci_link_kick(link);
		while (flush_delayed_work(&link->work))
			if (link->state != IVPCI_DOWN)
				msleep(20);
	}
}

/**
 * ivpci_links_exit() - free the links
 * @iv: the device, with interrupts off
 */
void ivpci_links_exit(struct ivpci *iv)
{
	unsigned int i;

	cancel_work_sync(&iv->scan);
	for (i = 0; i < iv->nlinks; i++)
		cancel_delayed_work_sync(&iv->links[i].work);
	destroy_workqueue(iv->wq);
	kvfree(iv->links);
}
