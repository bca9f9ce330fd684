//! Where a request may go when others say where: out into the world, never to this machine, a private network or a
//! reserved address, whatever the name of the place resolves to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// How far a request may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Reach {
    /// To addresses out in the world.
    #[default]
    World,
    /// There, and to private networks and this machine, as an operator may wish; never to what serves a cloud's
    /// machines their credentials.
    Private,
}

/// A name all of whose addresses are out of reach.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("it has no address out in the world")]
pub(crate) struct OutOfReach;

impl Reach {
    /// Whether the address in a place, if it is one, is within reach; a name is looked at when it is resolved.
    pub(crate) fn covers_place(self, place: &Url) -> bool {
        match place.host() {
            Some(Host::Ipv4(address)) => self.covers(address.into()),
            Some(Host::Ipv6(address)) => self.covers(address.into()),
            Some(Host::Domain(_)) => true,
            None => false,
        }
    }

    fn covers(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let is_near = match address {
            IpAddr::V4(v4) => is_private(v4),
            IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local(),
        };
        !METADATA.contains(&address) && (is_global(address) || (self == Self::Private && is_near))
    }
}

/// Names are resolved to addresses within reach only; what was resolved is what is connected to.
impl Resolve for Reach {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = *self;
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let covered: Vec<SocketAddr> = found.filter(|address| reach.covers(address.ip())).collect();
            if covered.is_empty() {
                return Err(OutOfReach.into());
            }
            Ok(Box::new(covered.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is out in the world: not this machine, not a private network, not reserved.
fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            !(is_private(v4)
                || v4.is_link_local()
                || v4.is_documentation()
                || v4.is_multicast()
                || matches!(a, 0 | 240..=255)
                || (a == 192 && b == 0 && c == 0)
                || (a == 192 && b == 88 && c == 99)
                || (a == 198 && matches!(b, 18 | 19)))
        }
        IpAddr::V6(v6) => {
            // Global unicast is 2000::/3; within it, what the IETF assigns for protocols (Teredo for one), documentation
            // and 6to4 lead elsewhere.
            let [first, second, ..] = v6.segments();
            first & 0xe000 == 0x2000
                && first != 0x2002
                && !(first == 0x2001 && (second < 0x0200 || second == 0x0db8))
                && !(first == 0x3fff && second < 0x1000)
        }
    }
}

/// This machine, and networks of one's own, those behind a provider's address translation too.
fn is_private(address: Ipv4Addr) -> bool {
    let [a, b, ..] = address.octets();
    address.is_private() || address.is_loopback() || (a == 100 && (64..128).contains(&b))
}

/// Where the machines of a cloud are told who they are, as far as no range above has it.
const METADATA: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_out_in_the_world_are_reached_and_private_ones_when_that_is_wished() {
        let (world, private, never) = ((true, true), (false, true), (false, false));
        for (address, expected) in [
            ("8.8.8.8", world),
            ("2606:4700::1111", world),
            ("::ffff:8.8.8.8", world),
            ("127.0.0.1", private),
            ("127.255.0.1", private),
            ("10.1.2.3", private),
            ("172.16.0.1", private),
            ("192.168.0.1", private),
            ("100.64.0.1", private),
            ("::1", private),
            ("::ffff:127.0.0.1", private),
            ("fd00::1", private),
            ("169.254.169.254", never),
            ("::ffff:169.254.169.254", never),
            ("168.63.129.16", never),
            ("100.100.100.200", never),
            ("fd00:ec2::254", never),
            ("0.0.0.0", never),
            ("255.255.255.255", never),
            ("224.0.0.1", never),
            ("192.0.0.8", never),
            ("192.0.2.1", never),
            ("192.88.99.1", never),
            ("198.18.0.1", never),
            ("198.51.100.1", never),
            ("203.0.113.1", never),
            ("::", never),
            ("::127.0.0.1", never),
            ("fe80::1", never),
            ("fec0::1", never),
            ("ff02::1", never),
            ("64:ff9b::7f00:1", never),
            ("64:ff9b:1::a00:1", never),
            ("100::1", never),
            ("2001::1", never),
            ("2001:2::1", never),
            ("2001:20::1", never),
            ("2001:db8::1", never),
            ("2002:7f00:1::", never),
            ("3fff::1", never),
            ("5f00::1", never),
        ] {
            let address_found: IpAddr = address.parse().unwrap();
            assert_eq!(
                (Reach::World.covers(address_found), Reach::Private.covers(address_found)),
                expected,
                "{address}"
            );
        }
    }

    #[test]
    fn however_an_address_is_written_it_is_seen() {
        for place in ["http://127.1/", "http://0x7f000001/", "http://2130706433/", "http://[::ffff:7f00:1]/"] {
            assert!(!Reach::World.covers_place(&place.parse().unwrap()), "{place}");
            assert!(Reach::Private.covers_place(&place.parse().unwrap()), "{place}");
        }
        assert!(Reach::World.covers_place(&"https://example.com/".parse().unwrap()));
    }
}
