// SPDX-License-Identifier: GPL-2.0
/* Counters and links, for people and tests: debugfs; sysfs for ivsmc-guest. */

#include <linux/debugfs.h>
#include <linux/seq_file.h>

#include "ivpci.h"

static struct dentry *ivpci_debugfs;

static const char * const ivpci_counters[] = {
	[IVPCI_INTERRUPTS] = "interrupts",
	[IVPCI_SIGNALS_SENT] = "signals_sent",
	[IVPCI_SIGNALS_COALESCED] = "signals_coalesced",
	[IVPCI_SIGNALS_RECEIVED] = "signals_received",
	[IVPCI_DOORBELLS] = "doorbells",
	[IVPCI_DOORBELLS_SUPPRESSED] = "doorbells_suppressed",
	[IVPCI_EVENTS_SENT] = "events_sent",
	[IVPCI_EVENTS_RECEIVED] = "events_received",
	[IVPCI_BYTES_MOVED] = "bytes_moved",
	[IVPCI_DMB_ALLOC_FAILURES] = "dmb_alloc_failures",
	[IVPCI_POLLS] = "polls",
	[IVPCI_POLL_HITS] = "poll_hits",
	[IVPCI_GUARDS] = "guards",
	[IVPCI_LINK_UPS] = "link_ups",
	[IVPCI_LINK_DOWNS] = "link_downs",
	[IVPCI_PEER_FAULTS] = "peer_faults",
};

static_assert(ARRAY_SIZE(ivpci_counters) == IVPCI_COUNTERS);

static u64 ivpci_sum(struct ivpci *iv, enum ivpci_counter counter)
{
	u64 sum = 0;
	int cpu;

	for_each_possible_cpu(cpu)
		sum += READ_ONCE(per_cpu_ptr(iv->stats, cpu)->counter[counter]);
	return sum;
}

static int counters_show(struct seq_file *m, void *unused)
{
	struct ivpci *iv = m->private;
	unsigned int dmbs = 0, retired = 0, attached = 0, i;

	for (i = 0; i < iv->nlinks; i++) {
		struct ivpci_link *link = &iv->links[i];

		spin_lock_bh(&link->lock);
		if (link->s) {
			dmbs += link->s->dmbs.live;
			retired += link->s->dmbs.retired;
			attached += link->s->remotes.held;
		}
		spin_unlock_bh(&link->lock);
	}

	for (i = 0; i < IVPCI_COUNTERS; i++)
		seq_printf(m, "%s %llu\n", ivpci_counters[i], ivpci_sum(iv, i));
	seq_printf(m, "dmbs %u\n", dmbs);
	seq_printf(m, "dmbs_retired %u\n", retired);
	seq_printf(m, "attached %u\n", attached);
	seq_printf(m, "poll_ns %llu\n", READ_ONCE(iv->poll_ns));
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(counters);

static int links_show(struct seq_file *m, void *unused)
{
	struct ivpci *iv = m->private;
	unsigned int i;

	for (i = 0; i < iv->nlinks; i++) {
		struct ivpci_link *link = &iv->links[i];
		const char *why = READ_ONCE(link->why);

		spin_lock_bh(&link->lock);
		seq_printf(m, "%u %s", i,
			   ivpci_state_name(READ_ONCE(link->state)));
		if (link->s)
			seq_printf(m, " side %u size %llu peer %pUb dmbs %u retired %u attached %u",
				   link->side, 1ULL << link->shift,
				   &link->peer.gid, link->s->dmbs.live,
				   link->s->dmbs.retired,
				   link->s->remotes.held);
		if (link->s && !link->s->cached)
			seq_puts(m, " uncached");
		spin_unlock_bh(&link->lock);
		if (why)
			seq_printf(m, " refused: %s", why);
		seq_putc(m, '\n');
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(links);

/* A line for each link that is not down for want of a peer */
static ssize_t ivpci_links_show(struct device *dev,
				struct device_attribute *attr, char *buf)
{
	struct ivpci *iv;
	unsigned int i;
	int at = 0;

	/* whoever starts the device anew, or removes this file, has the lock */
	if (!device_trylock(dev))
		return -EAGAIN;
	iv = dev_get_drvdata(dev);
	for (i = 0; iv && i < iv->nlinks; i++) {
		struct ivpci_link *link = &iv->links[i];
		enum ivpci_state state = READ_ONCE(link->state);
		const char *why = READ_ONCE(link->why);
		bool uncached;

		spin_lock_bh(&link->lock);
		uncached = link->s && !link->s->cached;
		spin_unlock_bh(&link->lock);
		if (state == IVPCI_DOWN && !why)
			continue;
		at += sysfs_emit_at(buf, at, "%u %s%s%s%s\n", i,
				    ivpci_state_name(state),
				    uncached ? ", uncached and so slow" : "",
				    why ? ": " : "", why ?: "");
	}
	device_unlock(dev);
	return at;
}
static DEVICE_ATTR_RO(ivpci_links);

static struct attribute *ivpci_attrs[] = {
	&dev_attr_ivpci_links.attr,
	NULL,
};

static const struct attribute_group ivpci_group = {
	.attrs = ivpci_attrs,
};

const struct attribute_group *ivpci_groups[] = {
	&ivpci_group,
	NULL,
};

/**
 * ivpci_debugfs_init() - create the module's folder
 */
void ivpci_debugfs_init(void)
{
	ivpci_debugfs = debugfs_create_dir(IVPCI_NAME, NULL);
}

/**
 * ivpci_debugfs_exit() - remove the module's folder
 */
void ivpci_debugfs_exit(void)
{
	debugfs_remove(ivpci_debugfs);
}

/**
 * ivpci_debugfs_add() - create a device's files
 * @iv: the device
 */
void ivpci_debugfs_add(struct ivpci *iv)
{
	iv->debugfs = debugfs_create_dir(pci_name(iv->pdev), ivpci_debugfs);
	debugfs_create_file("counters", 0444, iv->debugfs, iv, &counters_fops);
	debugfs_create_file("links", 0444, iv->debugfs, iv, &links_fops);
}

/**
 * ivpci_debugfs_del() - remove a device's files
 * @iv: the device
 */
void ivpci_debugfs_del(struct ivpci *iv)
{
	debugfs_remove(iv->debugfs);
}
