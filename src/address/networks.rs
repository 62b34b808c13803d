//! Ranges of IP addresses.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Net};

/// A network, or a single address. An IPv4 network is in its own form, not mapped to IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

impl Network {
    /// Whether an address is in the network. An IPv4 address that is mapped to IPv6 is compared as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Network {
    type Err = ipnet::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self(address.to_canonical().into()));
        }
        let network: IpNet = text.parse()?;
        Ok(Self(mapped_ipv4(network).unwrap_or(network).trunc()))
    }
}

impl From<Network> for IpNet {
    fn from(Network(network): Network) -> Self {
        network
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Returns the IPv4 network that is written as one mapped to IPv6.
fn mapped_ipv4(network: IpNet) -> Option<IpNet> {
    let IpNet::V6(network) = network else { return None };
    let length = network.prefix_len().checked_sub(96)?;
    Some(Ipv4Net::new(network.addr().to_ipv4_mapped()?, length).ok()?.into())
}

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
    fn a_network_has_one_form_however_it_is_written() {
        let table = [
            ("10.0.0.1", "10.0.0.1/32"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("::ffff:10.0.0.1", "10.0.0.1/32"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("fe80::1", "fe80::1/128"),
        ];
        for (text, form) in table {
            let network: Network = text.parse().expect("a network");
            assert_eq!(network.to_string(), form);
            assert_eq!(form.parse(), Ok(network));
        }
        let network: Network = "10.0.0.0/8".parse().expect("a network");
        let has = |text: &str| network.contains(text.parse().expect("an address"));
        assert!(has("10.1.2.3") && has("::ffff:10.1.2.3") && !has("11.0.0.1") && !has("fe80::1"));
        for text in ["", "10.0.0", "10.0.0.0/33", "fe80::%1", "unix"] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }

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
