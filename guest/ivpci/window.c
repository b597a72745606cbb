// SPDX-License-Identifier: GPL-2.0
/* The memory of a link: claim its window, map it, find out who still uses it. */

#include <linux/memory_hotplug.h>
#include <linux/mm.h>
#include <linux/vmalloc.h>

#include "ivpci.h"
#include "regs.h"

/**
 * ivpci_link_reg() - read a register of the link table
 * @link: the link, of an ivsmc device
 * @reg: the register
 *
 * Return: its value.
 */
u32 ivpci_link_reg(struct ivpci_link *link, u32 reg)
{
	struct ivpci *iv = link->iv;

	return readl(iv->table + link->index * iv->table_stride + reg);
}

/**
 * ivpci_window_there() - is the window there that we have, or could have?
 * @link: the link
 *
 * Return: true if it is.
 */
bool ivpci_window_there(struct ivpci_link *link)
{
	if (!link->iv->regs)
		return true;
	return ivpci_link_reg(link, IVSMC_LINK_STATE) == IVSMC_STATE_UP &&
	       (!link->generation ||
		ivpci_link_reg(link, IVSMC_LINK_GENERATION) == link->generation);
}

static const char *ivpci_claim(struct ivpci_link *link)
{
	struct ivpci *iv = link->iv;
	void __iomem *claim;
	u32 generation;
	int i;

	if (!iv->regs) {
		link->shift = iv->window_shift;
		link->side = ivpci_side < 0 ? iv->position & 1 : ivpci_side;
		link->peer_vectors = IVPCI_VECTORS;
		return NULL;
	}

	claim = iv->table + link->index * iv->table_stride + IVSMC_LINK_CLAIM;
	generation = ivpci_link_reg(link, IVSMC_LINK_GENERATION);
	writel(generation, claim);
	if (!generation || readl(claim) != generation)
		return "the window could not be claimed";
	link->generation = generation;
	link->shift = ivpci_link_reg(link, IVSMC_LINK_WINDOW_SHIFT);
	link->side = ivpci_link_reg(link, IVSMC_LINK_SIDE);
	link->peer_vectors = ivpci_link_reg(link, IVSMC_LINK_VECTORS);
	for (i = 0; i < ARRAY_SIZE(link->peer_device); i++)
		link->peer_device[i] = ivpci_link_reg(link, IVSMC_LINK_GID +
							    4 * i);
	if (link->side > 1 || link->shift < IVPCI_SHIFT_MIN ||
	    link->shift > iv->window_shift)
		return "the device says nonsense";
	return NULL;
}

static void ivpci_unclaim(struct ivpci_link *link)
{
	struct ivpci *iv = link->iv;

	if (iv->regs && link->generation)
		writel(0, iv->table + link->index * iv->table_stride +
			  IVSMC_LINK_CLAIM);
	link->generation = 0;
}

/* Does a pipe, or whatever else took a reference, still use this memory? */
static bool ivpci_folio_busy(struct ivpci_session *s, u64 off)
{
	return folio_ref_count(virt_to_folio(s->win + off)) > 1;
}

static bool ivpci_dmb_busy(struct ivpci_dmbs *dmbs, const struct ivpci_dmb *dmb)
{
	return ivpci_folio_busy(container_of(dmbs, struct ivpci_session, dmbs),
				dmb->off);
}

/**
 * ivpci_window_busy() - how much of a window do pipes and the like use?
 * @link: the link, with a window
 *
 * Return: how many folios.
 */
unsigned int ivpci_window_busy(struct ivpci_link *link)
{
	unsigned int busy = 0;
	u64 off;

	for (off = 0; off < 1ULL << link->shift;
	     off += 1ULL << IVPCI_FOLIO_SHIFT)
		busy += ivpci_folio_busy(link->s, off);
	return busy;
}

/* How the kernel has mapped it, which firmware and MTRRs have a say in. */
static bool ivpci_cached(void *win)
{
#ifdef CONFIG_X86
	unsigned int level;
	pte_t *pte = lookup_address((unsigned long)win, &level);

	return !pte || !(pte_flags(*pte) & (_PAGE_PWT | _PAGE_PCD));
#else
	return true;
#endif
}

static const char *ivpci_map(struct ivpci_link *link, struct ivpci_session *s)
{
	struct range can = mhp_get_pluggable_range(true);
	struct device *dev = &link->iv->pdev->dev;
	struct dev_pagemap *old;
	void *win;

	s->pgmap.type = MEMORY_DEVICE_GENERIC;
	s->pgmap.range.start = link->start;
	s->pgmap.range.end = link->start + (1ULL << link->shift) - 1;
	s->pgmap.nr_range = 1;
	/* splice wants all of a DMB in one folio */
	s->pgmap.vmemmap_shift = IVPCI_FOLIO_SHIFT - PAGE_SHIFT;
	if (s->pgmap.range.start < can.start || s->pgmap.range.end > can.end)
		return "BAR2 is too high to be mapped: place it lower, or boot with nokaslr";
	old = get_dev_pagemap(PHYS_PFN(link->start));
	if (old) {
		put_dev_pagemap(old);
		return "programs still use the last window";
	}
	win = memremap_pages(&s->pgmap, dev_to_node(dev));
	if (IS_ERR(win)) {
		dev_err_ratelimited(dev, "link %u: cannot map %pa: %pe\n",
				    link->index, &link->start, win);
		return "the kernel cannot map the window";
	}
	s->win = win;
	s->cached = ivpci_cached(win);
	if (!s->cached)
		dev_warn_ratelimited(dev,
				     "link %u: slow, as MTRRs have its window uncached: have the firmware call BAR2 write-back\n",
				     link->index);
	return NULL;
}

/**
 * ivpci_window_open() - claim and map a link's window
 * @link: the link
 *
 * Return: NULL, or why that cannot be.
 */
const char *ivpci_window_open(struct ivpci_link *link)
{
	struct ivpci *iv = link->iv;
	struct ivpci_session *s;
	const char *why;

	link->start = pci_resource_start(iv->pdev, 2) +
		      ((u64)link->index << iv->window_shift);
	why = ivpci_claim(link);
	if (why)
		goto err_claim;

	why = "no memory";
	s = vzalloc(sizeof(*s));
	if (!s)
		goto err_claim;
	if (ivpci_dmbs_init(&s->dmbs, link->shift, link->side))
		goto err_session;
	s->dmbs.busy = ivpci_dmb_busy;

	why = ivpci_map(link, s);
	if (why)
		goto err_dmbs;
	s->own = s->win + link->side * IVPCI_CTRL_SIZE;
	s->peer = s->win + !link->side * IVPCI_CTRL_SIZE;

	spin_lock_bh(&link->lock);
	link->s = s;
	spin_unlock_bh(&link->lock);
	return NULL;

err_dmbs:
	ivpci_dmbs_exit(&s->dmbs);
err_session:
	vfree(s);
err_claim:
	ivpci_unclaim(link);
	return why;
}

/**
 * ivpci_window_close() - unmap a window and let go of it
 * @link: the link; nobody uses the window any more
 */
void ivpci_window_close(struct ivpci_link *link)
{
	struct ivpci_session *s = link->s;

	spin_lock_bh(&link->lock);
	link->s = NULL;
	spin_unlock_bh(&link->lock);

	memunmap_pages(&s->pgmap);
	ivpci_dmbs_exit(&s->dmbs);
	vfree(s);
	ivpci_unclaim(link);
}
