//! Who the workload runs as: `USER`, `UID`, `USER:GROUP` or `UID:GID`, looked up in the guest's own
//! `/etc/passwd` and `/etc/group` (no name service: the files are the truth).
//!
//! A name wins over a number of the same spelling. A number needs no entry; without one its group
//! is 0, as container engines have it. An explicit group replaces the supplementary groups.

/// The identity of a process and what its environment says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// The entry of `/etc/passwd`, if there is one.
    pub account: Option<Account>,
}

/// What `/etc/passwd` says about a user, beyond numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// Home directory.
    pub home: String,
    /// Login shell; empty where the entry names none.
    pub shell: String,
}

/// Why a user cannot be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Not a name in `/etc/passwd`, and not a number.
    #[error("the guest's /etc/passwd has no user `{0}`; use one that it has, or a number")]
    User(String),
    /// Not a name in `/etc/group`, and not a number.
    #[error("the guest's /etc/group has no group `{0}`; use one that it has, or a number")]
    Group(String),
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
    shell: &'a str,
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Resolves `user` (`None` is user 0) in the texts of `/etc/passwd` and `/etc/group`; a missing
/// file is an empty text.
///
/// # Errors
/// [`UserError`] names the part that is not there.
pub fn resolve(user: Option<&str>, passwd: &str, group: &str) -> Result<Identity, UserError> {
    let (user, explicit_group) = match user.unwrap_or("0").split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (user.unwrap_or("0"), None),
    };
    let number = id(user);
    let entry = passwd_entries(passwd)
        .find(|entry| entry.name == user)
        .or_else(|| passwd_entries(passwd).find(|entry| Some(entry.uid) == number));
    let (uid, own_gid) = match (&entry, number) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => return Err(UserError::User(user.to_owned())),
    };
    let (gid, groups) = match explicit_group {
        Some(name) => {
            let found = group_entries(group).find(|entry| entry.name == name);
            let gid = found.map(|entry| entry.gid).or_else(|| id(name));
            let gid = gid.ok_or_else(|| UserError::Group(name.to_owned()))?;
            (gid, Vec::new())
        }
        None => {
            let name = entry.as_ref().map(|entry| entry.name);
            (own_gid, memberships(name, group))
        }
    };
    let account = entry.map(|entry| Account {
        name: entry.name.to_owned(),
        home: entry.home.to_owned(),
        shell: entry.shell.to_owned(),
    });
    Ok(Identity {
        uid,
        gid,
        groups,
        account,
    })
}

/// A user or group number; the highest one means "no change" to the kernel and is none.
fn id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits
        .then(|| text.parse().ok())
        .flatten()
        .filter(|&id| id != u32::MAX)
}

fn memberships(name: Option<&str>, group: &str) -> Vec<u32> {
    let Some(name) = name else {
        return Vec::new();
    };
    group_entries(group)
        .filter(|entry| entry.members.split(',').any(|member| member == name))
        .map(|entry| entry.gid)
        .collect()
}

/// The well-formed lines of `/etc/passwd`; others are passed over, as the C library does.
fn passwd_entries(text: &str) -> impl Iterator<Item = PasswdEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some(PasswdEntry {
            name,
            uid: id(fields.nth(1)?)?,
            gid: id(fields.next()?)?,
            home: fields.nth(1)?,
            shell: fields.next()?,
        })
    })
}

/// The well-formed lines of `/etc/group`.
fn group_entries(text: &str) -> impl Iterator<Item = GroupEntry<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some(GroupEntry {
            name,
            gid: id(fields.nth(1)?)?,
            members: fields.next()?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        broken line\n\
        nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n\
        app:x:1000:1000:An App,,,:/srv/app:/bin/bash\n\
        1001:x:7:7::/seven:\n";
    const GROUP: &str =
        "root:x:0:\nadm:x:4:app,root\napp:x:1000:\nvideo:x:44:apple,app\nshort:x:9\n";

    fn resolved(user: &str) -> Identity {
        resolve(Some(user), PASSWD, GROUP).expect("this user resolves")
    }

    #[test]
    fn test_resolve_name_takes_entry_and_memberships() {
        let app = resolved("app");
        assert_eq!((app.uid, app.gid), (1000, 1000));
        assert_eq!(app.groups, [4, 44]);
        let account = app.account.expect("it has an entry");
        assert_eq!(
            (account.name.as_str(), account.home.as_str()),
            ("app", "/srv/app")
        );
        assert_eq!(account.shell, "/bin/bash");
    }

    #[test]
    fn test_resolve_number_with_entry_is_that_user() {
        assert_eq!(resolved("1000"), resolved("app"));
    }

    #[test]
    fn test_resolve_number_without_entry_has_group_0_and_no_account() {
        let unknown = resolved("4242");
        assert_eq!((unknown.uid, unknown.gid), (4242, 0));
        assert_eq!((unknown.groups, unknown.account), (Vec::new(), None));
    }

    #[test]
    fn test_resolve_name_that_looks_like_a_number_wins() {
        assert_eq!(resolved("1001").uid, 7);
    }

    #[test]
    fn test_resolve_explicit_group_replaces_supplementary_groups() {
        let app = resolved("app:video");
        assert_eq!((app.uid, app.gid, app.groups), (1000, 44, Vec::new()));
        assert_eq!(resolved("5:6").gid, 6);
    }

    #[test]
    fn test_resolve_none_is_root_even_without_files() {
        let root = resolve(None, "", "").expect("user 0 needs no entry");
        assert_eq!((root.uid, root.gid, root.account), (0, 0, None));
        let root = resolve(None, PASSWD, GROUP).expect("it has an entry");
        assert_eq!(root.groups, [4]);
    }

    #[test]
    fn test_resolve_unknown_user_or_group_is_named() {
        let unknown = |user: &str| resolve(Some(user), PASSWD, GROUP);
        for user in ["alice", "", "-1", "4294967295", "4294967296", "1e3"] {
            assert_eq!(unknown(user), Err(UserError::User(user.into())));
        }
        assert_eq!(unknown("app:wheel"), Err(UserError::Group("wheel".into())));
        assert_eq!(unknown("app:"), Err(UserError::Group(String::new())));
    }
}
