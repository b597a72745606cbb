// SPDX-License-Identifier: GPL-2.0
/*
 * SMC-D between virtual machines of one host: a DIBS device on ivsmc, or on
 * QEMU's ivshmem-doorbell.
 */

#include <linux/cc_platform.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/pci.h>
#include <linux/pm.h>
#include <linux/random.h>
#include <linux/slab.h>
#include <linux/unaligned.h>
#include <linux/vmalloc.h>

#include "ivpci.h"
#include "regs.h"

static bool nocopy = true;
module_param(nocopy, bool, 0444);
MODULE_PARM_DESC(nocopy, "Let senders write to the receivers' buffers directly (default Y)");

static bool ivshmem;
module_param(ivshmem, bool, 0444);
MODULE_PARM_DESC(ivshmem, "Also take ivshmem devices, whoever else may use them (default N)");

int ivpci_side = -1;
module_param_named(side, ivpci_side, int, 0444);
MODULE_PARM_DESC(side, "On ivshmem: which side of the window we are, 0 or 1 (default -1: the lowest bit of IVPosition)");

static struct lock_class_key ivpci_dibs_lock;
static struct workqueue_struct *ivpci_wq;

/* SMC may need as long to end what uses a link */
#define IVPCI_GRACE	(2 * HZ)
/* The peers have heard by then that we leave, or nobody will tell them */
#define IVPCI_FAREWELL	(5 * HZ)

static void ivpci_restart(struct work_struct *work);
static void ivpci_removal(struct work_struct *work);

/* Find ivsmc's registers; iv->regs stays NULL if this is plain ivshmem. */
static int ivpci_find_ivsmc(struct ivpci *iv)
{
	resource_size_t len = pci_resource_len(iv->pdev, 0);
	struct pci_dev *pdev = iv->pdev;
	u32 signature, at = 0;
	u8 layout;
	int pos;

	for (pos = pci_find_capability(pdev, PCI_CAP_ID_VNDR); pos;
	     pos = pci_find_next_capability(pdev, pos, PCI_CAP_ID_VNDR)) {
		pci_read_config_byte(pdev, pos + IVSMC_CAP_LAYOUT, &layout);
		pci_read_config_dword(pdev, pos + IVSMC_CAP_SIGNATURE,
				      &signature);
		if (layout == 1 && signature == IVSMC_SIGNATURE) {
			pci_read_config_dword(pdev, pos + IVSMC_CAP_REGS, &at);
			break;
		}
	}
	if (!pos) {
		if (ivshmem)
			return 0;
		dev_info(&pdev->dev, "ivshmem, which ivpci takes with ivshmem=1 only\n");
		return -ENODEV;
	}

	if (at > len - IVSMC_REG_DOORBELL_STRIDE - 4 ||
	    readl(iv->bar0 + at + IVSMC_REG_SIGNATURE) != IVSMC_SIGNATURE ||
	    readl(iv->bar0 + at + IVSMC_REG_VERSION) < IVSMC_REGS_VERSION)
		return dev_err_probe(&pdev->dev, -ENODEV,
				     "unknown layout of the registers\n");
	iv->regs = iv->bar0 + at;
	return 0;
}

static void ivpci_read_gid(struct ivpci *iv, u32 *gid)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(iv->device_gid); i++)
		gid[i] = readl(iv->regs + IVSMC_REG_GID + 4 * i);
}

static int ivpci_read_ivsmc(struct ivpci *iv)
{
	resource_size_t len = pci_resource_len(iv->pdev, 0);
	u32 table, doorbells;

	iv->nlinks = readl(iv->regs + IVSMC_REG_MAX_PEERS);
	iv->fabric = readl(iv->regs + IVSMC_REG_FABRIC);
	iv->window_shift = readl(iv->regs + IVSMC_REG_WINDOW_SHIFT);
	iv->table_stride = readl(iv->regs + IVSMC_REG_LINK_STRIDE);
	iv->doorbell_stride = readl(iv->regs + IVSMC_REG_DOORBELL_STRIDE);
	table = readl(iv->regs + IVSMC_REG_LINK_TABLE);
	doorbells = readl(iv->regs + IVSMC_REG_DOORBELLS);
	ivpci_read_gid(iv, iv->device_gid);

	if (!iv->nlinks || iv->nlinks > IVPCI_LINKS ||
	    iv->window_shift < IVPCI_SHIFT_MIN ||
	    iv->window_shift > IVPCI_SHIFT_MAX ||
	    pci_resource_len(iv->pdev, 2) >> iv->window_shift < iv->nlinks ||
	    iv->table_stride < IVSMC_LINK_SIZE ||
	    (u64)table + (u64)iv->table_stride * iv->nlinks > len ||
	    iv->doorbell_stride < 4 * IVPCI_VECTORS ||
	    (u64)doorbells + (u64)iv->doorbell_stride * iv->nlinks > len)
		return dev_err_probe(&iv->pdev->dev, -ENODEV,
				     "the registers make no sense\n");
	iv->table = iv->bar0 + table;
	iv->doorbells = iv->bar0 + doorbells;
	return 0;
}

static int ivpci_read_plain(struct ivpci *iv)
{
	resource_size_t len = pci_resource_len(iv->pdev, 2);

	if (!is_power_of_2(len) || len < 1ULL << IVPCI_SHIFT_MIN ||
	    len > 1ULL << IVPCI_SHIFT_MAX)
		return dev_err_probe(&iv->pdev->dev, -ENODEV,
				     "%pa bytes of memory are no power of two from 2 MiB\n",
				     &len);
	if (iv->position > U16_MAX)
		return dev_err_probe(&iv->pdev->dev, -ENODEV,
				     "no IVPosition: has it a doorbell?\n");
	if (ivpci_side > 1)
		return dev_err_probe(&iv->pdev->dev, -EINVAL,
				     "side=%d: there are sides 0 and 1\n",
				     ivpci_side);
	iv->nlinks = 1;
	iv->fabric = IVPCI_PLAIN_FABRIC;
	iv->window_shift = ilog2(len);
	return 0;
}

/* A GID for this probe: SMC must not take us for who we were before. */
static void ivpci_make_gid(struct ivpci *iv, uuid_t *gid)
{
	do {
		get_random_bytes(gid, sizeof(*gid));
		if (iv->regs)
			ivpci_gid_bind(gid, iv->device_gid);
	} while (!ivpci_gid_valid(gid));
}

/* Is this not the device that was probed? One that is gone is no other one. */
static bool ivpci_renamed(struct ivpci *iv)
{
	u32 position = readl(iv->bar0 + IVPCI_REG_POSITION);
	u32 gid[ARRAY_SIZE(iv->device_gid)];

	ivpci_read_gid(iv, gid);
	return memchr_inv(gid, 0xff, sizeof(gid)) &&
	       (memcmp(gid, iv->device_gid, sizeof(gid)) ||
		position != iv->position);
}

/**
 * ivpci_follow() - start anew if the device has become another one
 * @iv: the device
 *
 * That is what happens when a virtual machine is restored from a snapshot or
 * migrated: peers do not accept our old GID from the new device.
 *
 * Context: @iv's scan work. All links end at once, the rest comes later.
 */
void ivpci_follow(struct ivpci *iv)
{
	if (!iv->regs || READ_ONCE(iv->leaving) || !ivpci_renamed(iv))
		return;
	dev_info(&iv->pdev->dev, "the device has another GID: starting anew\n");
	WRITE_ONCE(iv->leaving, true);
	refcount_inc(&iv->ref);
	pci_dev_get(iv->pdev);
	queue_work(ivpci_wq, &iv->restart);
}

static void ivpci_put(struct ivpci *iv)
{
	if (refcount_dec_and_test(&iv->ref))
		vfree(iv);
}

static void ivpci_irqs_free(struct ivpci *iv, unsigned int requested)
{
	while (requested) {
		requested--;
		free_irq(pci_irq_vector(iv->pdev, requested),
			 &iv->irq[requested]);
	}
	pci_free_irq_vectors(iv->pdev);
}

static void ivpci_irqs_off(struct ivpci *iv)
{
	ivpci_irqs_free(iv, iv->vectors);
}

/*
 * On ivsmc vector 0 tells of changes of links, and links share the others: no
 * more than there are of CPUs or of links. They are no managed interrupts: one
 * of those is off while its CPUs are, and its links would not be woken.
 */
static int ivpci_irqs_on(struct ivpci *iv)
{
	unsigned int i, most = 1;
	int ret;

	if (iv->regs)
		most += min(num_online_cpus(), iv->nlinks);
	ret = pci_alloc_irq_vectors(iv->pdev, 1, most, PCI_IRQ_MSIX);
	if (ret < 0)
		return dev_err_probe(&iv->pdev->dev, ret, "no MSI-X\n");

	iv->vectors = ret;
	for (i = 0; i < iv->vectors; i++)
		iv->irq[i].iv = iv;
	for (i = 0; i < iv->nlinks; i++)
		__set_bit(i, iv->irq[ivpci_vector(iv, i)].links);
	for (i = 0; i < iv->vectors; i++) {
		ret = request_irq(pci_irq_vector(iv->pdev, i),
				  iv->regs && !i ? ivpci_irq_change :
						   ivpci_irq_doorbell,
				  0, i ? IVPCI_NAME "-doorbell" : IVPCI_NAME,
				  &iv->irq[i]);
		if (ret) {
			ivpci_irqs_free(iv, i);
			return ret;
		}
	}
	return 0;
}

static int ivpci_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct dibs_dev *dibs;
	struct ivpci *iv;
	int ret;

	if (cc_platform_has(CC_ATTR_GUEST_MEM_ENCRYPT))
		return dev_err_probe(&pdev->dev, -EOPNOTSUPP,
				     "this guest's memory is encrypted: what passes through a window would be readable for the host\n");

	iv = vzalloc(sizeof(*iv));
	if (!iv)
		return -ENOMEM;
	iv->pdev = pdev;
	INIT_WORK(&iv->restart, ivpci_restart);
	INIT_WORK(&iv->removal, ivpci_removal);
	init_completion(&iv->removed);
	refcount_set(&iv->ref, 1);
	ida_init(&iv->idx);
	pci_set_drvdata(pdev, iv);

	ret = -ENOMEM;
	iv->stats = alloc_percpu(struct ivpci_stats);
	if (!iv->stats)
		goto err_iv;

	ret = pci_enable_device_mem(pdev);
	if (ret)
		goto err_stats;
	ret = pci_request_mem_regions(pdev, IVPCI_NAME);
	if (ret)
		goto err_disable;

	ret = -ENOMEM;
	iv->bar0 = pci_iomap(pdev, 0, 0);
	if (!iv->bar0)
		goto err_regions;
	iv->position = readl(iv->bar0 + IVPCI_REG_POSITION);
	ret = ivpci_find_ivsmc(iv);
	if (ret)
		goto err_bar0;
	ret = iv->regs ? ivpci_read_ivsmc(iv) : ivpci_read_plain(iv);
	if (ret)
		goto err_bar0;

	ret = -ENOMEM;
	dibs = dibs_dev_alloc();
	if (!dibs)
		goto err_bar0;
	/* dibs_loopback takes its lock with interrupts on, we take ours in them */
	lockdep_set_class(&dibs->lock, &ivpci_dibs_lock);
	iv->dibs = dibs;
	dibs->drv_priv = iv;
	dibs->ops = ivpci_dibs_ops(nocopy);
	dibs->dev.parent = &pdev->dev;
	ivpci_make_gid(iv, &dibs->gid);
	ret = dev_set_name(&dibs->dev, "ivpci-%s", pci_name(pdev));
	if (ret)
		goto err_dibs;

	ret = ivpci_links_init(iv);
	if (ret)
		goto err_dibs;
	ret = ivpci_poll_start(iv);
	if (ret)
		goto err_links;
	/* before the interrupts: it may be what initialises dibs->lock */
	ret = dibs_dev_add(dibs);
	if (ret)
		goto err_poll;
	pci_set_master(pdev); /* MSI-X */
	ret = ivpci_irqs_on(iv);
	if (ret)
		goto err_added;
	ivpci_debugfs_add(iv);
	ivpci_links_scan(iv);
	dev_info(&pdev->dev, "%s, %u link%s, GID %pUb, %s\n",
		 iv->regs ? "ivsmc" : "ivshmem", iv->nlinks,
		 iv->nlinks == 1 ? "" : "s", &dibs->gid,
		 nocopy ? "no-copy" : "copying");
	return 0;

err_added:
	pci_clear_master(pdev);
	dibs_dev_del(dibs);
	ivpci_links_stop(iv); /* an interrupt may have started them */
err_poll:
	ivpci_poll_stop(iv);
err_links:
	ivpci_links_exit(iv);
err_dibs:
	put_device(&dibs->dev);
err_bar0:
	pci_iounmap(pdev, iv->bar0);
err_regions:
	pci_release_mem_regions(pdev);
err_disable:
	pci_disable_device(pdev);
err_stats:
	free_percpu(iv->stats);
err_iv:
	ivpci_put(iv);
	return ret;
}

/* SMC ends all connections, then waits until programs have closed them. */
static void ivpci_removal(struct work_struct *work)
{
	struct ivpci *iv = container_of(work, struct ivpci, removal);

	dibs_dev_del(iv->dibs);
	complete_all(&iv->removed);
}

static void ivpci_remove(struct pci_dev *pdev)
{
	struct ivpci *iv = pci_get_drvdata(pdev);

	if (!iv) /* ivpci_restart() has failed */
		return;
	/* peers are told while there is a link, but do not wait for programs */
	queue_work(ivpci_wq, &iv->removal);
	wait_for_completion_timeout(&iv->removed, IVPCI_GRACE);
	ivpci_links_stop(iv);
	wait_for_completion(&iv->removed);
	ivpci_debugfs_del(iv);
	ivpci_irqs_off(iv);
	pci_clear_master(pdev);
	ivpci_poll_stop(iv);
	ivpci_links_exit(iv);
	put_device(&iv->dibs->dev);
	pci_iounmap(pdev, iv->bar0);
	pci_release_mem_regions(pdev);
	pci_disable_device(pdev);
	free_percpu(iv->stats);
	ida_destroy(&iv->idx);
	ivpci_put(iv);
}

/*
 * Another kernel may follow (kexec) that knows nothing of us. SMC cannot be made
 * to let go any more, so what it still has stays mapped.
 */
static void ivpci_shutdown(struct pci_dev *pdev)
{
	struct ivpci *iv = pci_get_drvdata(pdev);

	if (!iv)
		return;
	WRITE_ONCE(iv->leaving, true);
	ivpci_links_leave(iv, false, IVPCI_FAREWELL);
}

/* The links end; what programs keep of them sleeps as they do. */
static int ivpci_suspend(struct device *dev)
{
	struct ivpci *iv = dev_get_drvdata(dev);

	if (!iv)
		return 0;
	WRITE_ONCE(iv->paused, true);
	if (ivpci_links_leave(iv, false, IVPCI_FAREWELL))
		return 0;
	WRITE_ONCE(iv->paused, false);
	ivpci_links_scan(iv);
	dev_err(dev, "cannot sleep: a program is sending over a link that has ended\n");
	return -EBUSY;
}

static int ivpci_resume(struct device *dev)
{
	struct ivpci *iv = dev_get_drvdata(dev);

	if (!iv)
		return 0;
	WRITE_ONCE(iv->paused, false);
	ivpci_links_scan(iv);
	return 0;
}

static DEFINE_SIMPLE_DEV_PM_OPS(ivpci_pm, ivpci_suspend, ivpci_resume);

static void ivpci_restart(struct work_struct *work)
{
	struct ivpci *iv = container_of(work, struct ivpci, restart);
	struct pci_dev *pdev = iv->pdev;
	int ret;

	device_lock(&pdev->dev);
	/* else we were unbound meanwhile, and perhaps another driver bound */
	if (pci_get_drvdata(pdev) == iv) {
		ivpci_remove(pdev);
		ret = ivpci_probe(pdev, NULL);
		if (ret) {
			pci_set_drvdata(pdev, NULL);
			dev_err(&pdev->dev, "cannot start anew: %d\n", ret);
		}
	}
	device_unlock(&pdev->dev);
	pci_dev_put(pdev);
	ivpci_put(iv);
}

static const struct pci_device_id ivpci_ids[] = {
	{ PCI_DEVICE(IVPCI_VENDOR_ID, IVPCI_DEVICE_ID) },
	{ }
};
MODULE_DEVICE_TABLE(pci, ivpci_ids);

static struct pci_driver ivpci_driver = {
	.name = IVPCI_NAME,
	.id_table = ivpci_ids,
	.probe = ivpci_probe,
	.remove = ivpci_remove,
	.shutdown = ivpci_shutdown,
	.dev_groups = ivpci_groups, /* PCI gives it to .driver, whatever that has */
	.driver.pm = pm_sleep_ptr(&ivpci_pm),
};

static int __init ivpci_init(void)
{
	int ret;

	ivpci_wq = alloc_workqueue(IVPCI_NAME, WQ_UNBOUND, 0);
	if (!ivpci_wq)
		return -ENOMEM;
	ivpci_debugfs_init();
	ret = pci_register_driver(&ivpci_driver);
	if (ret) {
		ivpci_debugfs_exit();
		destroy_workqueue(ivpci_wq);
	}
	return ret;
}
module_init(ivpci_init);

static void __exit ivpci_exit(void)
{
	pci_unregister_driver(&ivpci_driver);
	destroy_workqueue(ivpci_wq); /* nothing is bound: what runs ends at once */
	ivpci_debugfs_exit();
}
module_exit(ivpci_exit);

MODULE_DESCRIPTION("SMC-D over shared memory between virtual machines");
MODULE_LICENSE("GPL");
MODULE_VERSION("0.1.0");
