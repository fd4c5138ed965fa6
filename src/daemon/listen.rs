use std::fs;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpListener;

use super::error::DaemonError;

/// Listens for `what` on the address of `flag`. `[::]` listens on all IPv6 and IPv4 addresses; without IPv6, on all
/// IPv4 addresses.
///
/// # Errors
///
/// The error names the owner of a port in use, and the flag to change.
pub(super) async fn bind(address: SocketAddr, what: &str, flag: &str) -> Result<TcpListener, DaemonError> {
    let mut bound = TcpListener::bind(address).await;
    if address.ip() == Ipv6Addr::UNSPECIFIED
        && bound.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::AddrInUse)
    {
        bound = TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await;
    }
    bound.map_err(|error| {
        DaemonError(match error.kind() {
            io::ErrorKind::AddrInUse => {
                let owner = port_owner(address.port()).unwrap_or_else(|| "another process".into());
                format!(
                    "cannot serve {what} on {address}: the port is in use by {owner}; stop it, \
                     or choose another address with {flag}"
                )
            }
            _ => format!("cannot serve {what} on {address}: {error}; choose another address with {flag}"),
        })
    })
}

/// Returns the owner of a listening port, from `/proc`: `evenkeel (pid 4242)`, or the uid of a process of another
/// user.
fn port_owner(port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let socket = tables.iter().find_map(|table| find_listening_socket(&read_file(table)?, port))?;
    let link = format!("socket:[{}]", socket.inode);
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let pid = processes
        .filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok())
        .find(|pid| process_has_socket(*pid, &link));
    Some(match pid {
        Some(pid) => {
            let name = read_file(&format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("{} (pid {pid})", name.trim())
        }
        None => format!("a process of uid {}", socket.user),
    })
}

fn process_has_socket(pid: u32, link: &str) -> bool {
    // The directory of another user's process cannot be read.
    fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten()
        .any(|file| fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == link))
}

fn read_file(path: &str) -> Option<String> {
    let mut text = String::new();
    fs::File::open(path).ok()?.read_to_string(&mut text).ok()?;
    Some(text)
}

#[derive(Debug, PartialEq)]
struct ListeningSocket {
    user: u32,
    inode: u64,
}

/// Returns the socket that listens on a port, from a table of proc(5).
fn find_listening_socket(table: &str, port: u16) -> Option<ListeningSocket> {
    const LISTEN_STATE: &str = "0A";
    table.lines().skip(1).find_map(|line| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let (_, hex) = columns.get(1)?.rsplit_once(':')?;
        let is_listener = u16::from_str_radix(hex, 16).ok()? == port && *columns.get(3)? == LISTEN_STATE;
        is_listener.then_some(ListeningSocket {
            user: columns.get(7)?.parse().ok()?,
            inode: columns.get(9)?.parse().ok()?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROC_NET_TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1E25 0100007F:8124 01 00000000:00000000 00:00000000 00000000  1000        0 11 1 0 100 0
   1: 0100007F:1E25 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1001        0 4711 1 0 100 0
   2: damaged
";

    #[test]
    fn listening_socket_is_found_by_port() {
        assert_eq!(
            find_listening_socket(PROC_NET_TCP, 0x1E25),
            Some(ListeningSocket { user: 1001, inode: 4711 })
        );
        assert_eq!(find_listening_socket(PROC_NET_TCP, 80), None);
    }

    #[tokio::test]
    async fn unspecified_address_accepts_ipv4_and_ipv6() {
        let listener = bind("[::]:0".parse().unwrap(), "MCP", "--listen").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.is_ok() {
            tokio::net::TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
        }
    }

    #[tokio::test]
    async fn port_in_use_error_names_owner_and_flag() {
        let first = bind("127.0.0.1:0".parse().unwrap(), "MCP", "--listen").await.unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address, "MCP", "--listen").await.unwrap_err().to_string();
        assert!(error.contains(&format!("cannot serve MCP on {address}")), "{error}");
        assert!(error.contains("--listen"), "{error}");
        if cfg!(target_os = "linux") {
            let owner = format!("(pid {})", std::process::id());
            assert!(error.contains(&owner), "{error}");
        }
    }
}
