// SPDX-License-Identifier: GPL-2.0
/* All links of a device: begin, look after them, leave. */

#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/wait.h>

#include "ivpci.h"

/* Peers can have us look at the registers, no more often than this */
#define IVPCI_REST	max(HZ / 50, 1)
/* How often it is told that something takes long */
#define IVPCI_TELL	(10 * HZ)

/**
 * ivpci_link_usage() - who uses what of a link
 * @link: the link
 * @use: takes it
 */
void ivpci_link_usage(struct ivpci_link *link, struct ivpci_usage *use)
{
	memset(use, 0, sizeof(*use));
	spin_lock_bh(&link->lock);
	if (link->s) {
		use->dmbs = link->s->dmbs.live;
		use->remotes = link->s->remotes.held;
		use->folios = ivpci_window_busy(link);
	}
	spin_unlock_bh(&link->lock);
}

static void ivpci_scan(struct work_struct *work)
{
	struct ivpci *iv = container_of(to_delayed_work(work), struct ivpci,
					scan);
	unsigned int i;

	WRITE_ONCE(iv->scanned, jiffies);
	ivpci_follow(iv);
	for (i = 0; i < iv->nlinks; i++) {
		WRITE_ONCE(iv->links[i].look, true);
		ivpci_link_kick(&iv->links[i]);
	}
}

/**
 * ivpci_links_scan() - look after all links: the device may have changed
 * @iv: the device
 *
 * Context: any.
 */
void ivpci_links_scan(struct ivpci *iv)
{
	unsigned long next = READ_ONCE(iv->scanned) + IVPCI_REST;
	unsigned long now = jiffies;

	queue_delayed_work(iv->wq, &iv->scan,
			   time_before(now, next) ? next - now : 0);
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
	init_waitqueue_head(&iv->quiet);
	INIT_DELAYED_WORK(&iv->scan, ivpci_scan);
	iv->scanned = jiffies - IVPCI_REST;
	for (i = 0; i < iv->nlinks; i++) {
		struct ivpci_link *link = &iv->links[i];

		link->iv = iv;
		link->index = i;
		spin_lock_init(&link->lock);
		INIT_DELAYED_WORK(&link->work, ivpci_link_work);
		link->not_before = jiffies;
		link->look = true;
	}
	return 0;
}

/* Is there no link that a peer, or SMC, may still write through? */
static bool ivpci_links_quiet(struct ivpci *iv, bool unmapped)
{
	unsigned int i;

	for (i = 0; i < iv->nlinks; i++) {
		struct ivpci_link *link = &iv->links[i];
		enum ivpci_state state = READ_ONCE(link->state);
		struct ivpci_usage use;

		if (state == IVPCI_DOWN)
			continue;
		if (unmapped || state != IVPCI_ENDING ||
		    READ_ONCE(link->peer.epoch))
			return false;
		ivpci_link_usage(link, &use);
		if (use.remotes)
			return false;
	}
	return true;
}

/**
 * ivpci_links_leave() - have all links end
 * @iv: the device, which is stopping
 * @unmapped: wait until all windows are unmapped, too
 * @most: how long to wait (jiffies)
 *
 * Return: true if they have.
 */
bool ivpci_links_leave(struct ivpci *iv, bool unmapped, unsigned long most)
{
	unsigned long end = jiffies + most;
	unsigned int i;

	for (i = 0; i < iv->nlinks; i++)
		ivpci_link_kick(&iv->links[i]);
	/* not all that ends it wakes us */
	while (!wait_event_idle_timeout(iv->quiet,
					ivpci_links_quiet(iv, unmapped),
					IVPCI_REST))
		if (!time_before(jiffies, end))
			return false;
	return true;
}

/**
 * ivpci_links_stop() - leave all peers, and unmap all windows
 * @iv: the device; SMC does not use it any more
 *
 * What programs keep can take as long as they like: it is told.
 */
void ivpci_links_stop(struct ivpci *iv)
{
	struct ivpci_usage use;
	unsigned int i;

	WRITE_ONCE(iv->leaving, true);
	while (!ivpci_links_leave(iv, true, IVPCI_TELL))
		for (i = 0; i < iv->nlinks; i++) {
			ivpci_link_usage(&iv->links[i], &use);
			if (ivpci_used(&use))
				dev_warn(&iv->pdev->dev,
					 "waits for link %u: programs keep " IVPCI_USAGE "\n",
					 i, use.dmbs + use.remotes, use.folios);
		}
}

/**
 * ivpci_links_exit() - free the links
 * @iv: the device, with interrupts off
 */
void ivpci_links_exit(struct ivpci *iv)
{
	unsigned int i;

	cancel_delayed_work_sync(&iv->scan);
	for (i = 0; i < iv->nlinks; i++)
		cancel_delayed_work_sync(&iv->links[i].work);
	destroy_workqueue(iv->wq);
	kvfree(iv->links);
}
