//! Ranges of IP addresses.

use std::net::IpAddr;

use ipnet::IpNet;

/// A set of networks. IPv4 networks are in their own form, not mapped to IPv6.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// Returns the number of networks.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an address is in one of the networks. An IPv4 address that is mapped to IPv6 (RFC 4291,
    /// section 2.5.5.2) is compared as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

impl FromIterator<IpNet> for Networks {
    fn from_iter<I: IntoIterator<Item = IpNet>>(networks: I) -> Self {
        Self(networks.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_a_network_in_either_form() {
        let networks = ["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().expect("a network"));
        let networks = Networks::from_iter(networks);
        let has = |text: &str| networks.contains(text.parse().expect("an address"));
        assert!(has("10.1.2.3") && has("::ffff:10.1.2.3") && has("fd00::1"));
        assert!(!has("11.0.0.1") && !has("::ffff:11.0.0.1") && !has("fe80::1"));
        assert!(!Networks::default().contains("10.1.2.3".parse().expect("an address")));
    }
}
