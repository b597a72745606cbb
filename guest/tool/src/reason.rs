// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! SMC's reasons for falling back to TCP (the kernel's `SMC_CLC_DECL_*`), in words.

/// Declined by the peer: its diagnosis says why.
pub const PEER_DECLINED: u32 = 0x0500_0000;

/// What the code means and, where it helps, what to do about it.
///
/// Codes that are no handshake reason are errno values.
pub fn words(code: u32) -> String {
    let known = match code {
        0 => "no reason given",
        0x0101_0000 => "out of memory for buffers",
        0x0201_0000 => "timed out while confirming the SMC-R link",
        0x0202_0000 => "timed out while adding an SMC-R link",
        0x0300_0000 => "configuration error",
        0x0301_0000 => {
            "the peer's TCP handshake did not offer SMC: its program has a TCP socket, or its kernel no SMC"
        }
        0x0302_0000 => "IPsec is in use on the connection",
        0x0303_0000 => {
            "no SMC device found: is ivpci loaded, and is the ivsmc link to the peer up?"
        }
        0x0303_0001 => "no SMC-D device that both can use: is ivpci loaded, and a UEID in common?",
        0x0303_0002 => "no SMC-R device found",
        0x0303_0003 => "the devices do not support SMC-Dv2",
        0x0303_0004 => "the peer sent no SMCv2 extension: no UEID or no SMCv2 device there",
        0x0303_0005 => "the peer sent no SMC-Dv2 extension: no SMC-D device there",
        0x0303_0006 => "the peer sent no system EID, and no UEID is in common",
        0x0303_0007 => {
            "no SMC-D device reaches the peer: no ivsmc link between the two systems is up"
        }
        0x0303_0008 => "no UEID in common: add the same one on both sides (ivsmc-guest ueid add)",
        0x0303_0009 => "the SMC releases cannot be agreed on",
        0x0303_000a => "the number of connections per link group cannot be agreed on",
        0x0303_000b => "the number of links per link group cannot be agreed on",
        0x0304_0000 => "one side has SMC-D only, the other SMC-R only",
        0x0305_0000 => "the peer has an eyecatcher in its receive buffer",
        0x0306_0000 => "a socket option that SMC does not support (such as TCP fast open)",
        0x0307_0000 => "the two addresses are not in one subnet",
        0x0308_0000 => "the VLAN of the network interface cannot be found out",
        0x0309_0000 => "the VLAN cannot be registered on the SMC-D device",
        0x030a_0000 => "no active SMC-R link in the link group",
        0x030b_0000 => "the server's SMC-R link was not found",
        0x030c_0000 => "the SMC versions do not match",
        0x030d_0000 => "the device has no room for another receive buffer (DMB)",
        0x030e_0000 => "no route to the peer for SMC-Rv2",
        0x030f_0000 => "direct and indirect SMC-Rv2 do not match",
        0x0400_0000 => {
            "the two sides disagree whether a link group exists (parallel first connections)"
        }
        PEER_DECLINED => "the peer declined",
        0x0999_0000 => "internal error",
        0x0999_0001 => "internal error: remote token",
        0x0999_0002 => "internal error: the RDMA link did not become ready",
        0x0999_0003 => "internal error: buffers could not be registered",
        _ => "",
    };
    if !known.is_empty() {
        return known.to_owned();
    }
    match i32::try_from(code) {
        Ok(errno @ 1..=4095) => std::io::Error::from_raw_os_error(errno).to_string(),
        _ => match (code as i32).checked_neg() {
            Some(errno @ 1..=4095) => std::io::Error::from_raw_os_error(errno).to_string(),
            _ => "a code this tool does not know".to_owned(),
        },
    }
}

/// Why a connection fell back: this side's reason, and the peer's if it gave one.
pub fn explain(reason: u32, peer_diagnosis: u32) -> String {
    match (reason, peer_diagnosis) {
        (PEER_DECLINED, 0) => format!("{} (0x{reason:08x})", words(reason)),
        (PEER_DECLINED, peer) => format!("the peer declined: {} (0x{peer:08x})", words(peer)),
        (_, 0) => format!("{} (0x{reason:08x})", words(reason)),
        (_, peer) => format!(
            "{} (0x{reason:08x}); the peer says: {} (0x{peer:08x})",
            words(reason),
            words(peer)
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_words() {
        assert!(explain(0x0301_0000, 0).contains("did not offer SMC"));
        assert!(explain(PEER_DECLINED, 0x0303_0008).contains("UEID"));
        assert!(words(libc::ECONNRESET as u32).contains("reset"));
        assert!(words(-libc::ENOMEM as u32).contains("memory"));
        assert!(words(0xdead_beef).contains("does not know"));
        assert!(words(i32::MIN as u32).contains("does not know"));
    }
}
