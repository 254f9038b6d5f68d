//! The file that tells others which addresses were bound. It is there only when the doors are open,
//! and never half written.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::json;

/// Removes the file of an earlier run, which would be taken for this one's.
pub(super) async fn remove(path: &Path) -> io::Result<()> {
    match tokio::fs::remove_file(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Writes `{"tcp_address": …, "http_address": …}`, and `https_address` if there is one, beside `path` and
/// renames it into place.
pub(super) async fn write(
    path: &Path,
    tcp: SocketAddr,
    http: SocketAddr,
    https: Option<SocketAddr>,
) -> io::Result<()> {
    let mut addresses = json!({"tcp_address": tcp.to_string(), "http_address": http.to_string()});
    if let (Some(https), Some(object)) = (https, addresses.as_object_mut()) {
        object.insert("https_address".to_owned(), https.to_string().into());
    }
    let mut name = path
        .file_name()
        .ok_or(io::ErrorKind::InvalidInput)?
        .to_owned();
    name.push(format!(".{}", std::process::id()));
    let partial = path.with_file_name(name);
    tokio::fs::write(&partial, format!("{addresses}\n")).await?;
    tokio::fs::rename(&partial, path).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_file_holds_both_addresses_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("addresses.json");
        remove(&path).await.unwrap();
        let (tcp, http) = ("127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap());
        write(&path, tcp, http, Some(tcp)).await.unwrap();
        let read: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(
            read,
            json!({"tcp_address": "127.0.0.1:1", "http_address": "[::1]:2", "https_address": "127.0.0.1:1"})
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        remove(&path).await.unwrap();
        assert!(!path.exists());
    }
}
