//! Extended attributes on their way from an archive to an inode: chosen, checked and written as the kernel would when
//! a layer is unpacked, so that a disk shows what a directory would.

use luna_core::Result;

use crate::layer::archive::corrupt;
use crate::layer::is_allowed_attribute;

/// Prefixes that a number stands for (`EROFS_XATTR_INDEX_*`); an ACL's name is nothing but its prefix.
const PREFIXES: [(&[u8], u8); 4] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"security.", 6),
];
const ACL_ACCESS: u8 = 2;
const ACL_DEFAULT: u8 = 3;
/// What an inode's 16 bits of length hold, in units of 4 bytes; rounded down to the kernel's own limit for a list.
const MOST: usize = 128 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attribute {
    prefix: u8,
    /// What follows the prefix.
    name: Box<[u8]>,
    value: Box<[u8]>,
}

impl Attribute {
    pub(super) fn memory(&self) -> usize {
        size_of::<Attribute>() + self.name.len() + self.value.len()
    }

    fn encoded(&self) -> usize {
        (4 + self.name.len() + self.value.len()).next_multiple_of(4)
    }
}

/// Bytes of `attributes` behind an inode.
pub(super) fn size(attributes: &[Attribute]) -> usize {
    match attributes.is_empty() {
        true => 0,
        false => 12 + attributes.iter().map(Attribute::encoded).sum::<usize>(),
    }
}

/// Appends them: a header of 12 bytes without shared attributes, then one after another, padded to 4 bytes.
pub(super) fn encode(attributes: &[Attribute], out: &mut Vec<u8>) {
    if attributes.is_empty() {
        return;
    }
    out.extend_from_slice(&[0; 12]);
    for attribute in attributes {
        let end = out.len() + attribute.encoded();
        out.extend_from_slice(&[attribute.name.len() as u8, attribute.prefix]);
        out.extend_from_slice(&(attribute.value.len() as u16).to_le_bytes());
        out.extend_from_slice(&attribute.name);
        out.extend_from_slice(&attribute.value);
        out.resize(end, 0);
    }
}

/// Sets what a sandbox may carry of `wanted` on top of `attributes`. An access ACL changes the mode as `setxattr(2)`
/// would, and is dropped where the mode says as much.
pub(super) fn set(
    attributes: &mut Vec<Attribute>,
    mode: &mut u16,
    is_directory: bool,
    wanted: &[(Vec<u8>, Vec<u8>)],
) -> Result<()> {
    for (name, value) in wanted {
        if !is_allowed_attribute(name) {
            continue;
        }
        let (prefix, rest) = PREFIXES
            .iter()
            .find_map(|(text, prefix)| Some((*prefix, name.strip_prefix(*text)?)))
            .ok_or_else(|| corrupt("an extended attribute's name is malformed"))?;
        attributes.retain(|other| (other.prefix, &*other.name) != (prefix, rest));
        let kept = match prefix {
            ACL_ACCESS => acl(value)?.is_some_and(|acl| acl.apply(mode)),
            ACL_DEFAULT if !is_directory => return Err(corrupt("only a directory has a default ACL")),
            ACL_DEFAULT => acl(value)?.is_some(),
            _ if rest.is_empty() || name.len() > 255 => {
                return Err(corrupt("an extended attribute's name is malformed"));
            }
            _ if name == b"security.capability" && !is_capability(value) => {
                return Err(corrupt("a file capability is malformed"));
            }
            _ => true,
        };
        if value.len() > usize::from(u16::MAX) {
            return Err(corrupt("an extended attribute is larger than 65,535 bytes"));
        }
        if kept {
            attributes.push(Attribute {
                prefix,
                name: rest.into(),
                value: value.as_slice().into(),
            });
        }
    }
    match size(attributes) > MOST {
        true => Err(corrupt(
            "a file's extended attributes are larger than 128 KiB together",
        )),
        false => Ok(()),
    }
}

/// `struct vfs_cap_data` of version 2 or 3, all that the kernel takes.
fn is_capability(value: &[u8]) -> bool {
    let version = value.get(3).copied();
    let flags = &value.get(..3);
    matches!((value.len(), version), (20, Some(2)) | (24, Some(3))) && matches!(flags, Some([0 | 1, 0, 0]))
}

/// What an ACL makes of the mode's nine bits, and whether it says more than they can.
struct Acl {
    permissions: u16,
    more: bool,
}

impl Acl {
    fn apply(&self, mode: &mut u16) -> bool {
        *mode = *mode & !0o777 | self.permissions;
        self.more
    }
}

/// Reads `struct posix_acl_xattr_header` and its entries by the rules of the kernel's `posix_acl_valid`; an ACL without
/// entries is none.
fn acl(value: &[u8]) -> Result<Option<Acl>> {
    const USER_OBJECT: u16 = 1;
    const USER: u16 = 2;
    const GROUP_OBJECT: u16 = 4;
    const GROUP: u16 = 8;
    const MASK: u16 = 16;
    const OTHER: u16 = 32;
    let malformed = || corrupt("an ACL is malformed");
    let (version, entries) = value.split_first_chunk::<4>().ok_or_else(malformed)?;
    if u32::from_le_bytes(*version) != 2 || entries.len() % 8 != 0 {
        return Err(malformed());
    }
    if entries.is_empty() {
        return Ok(None);
    }
    // What may come next; each entry is of a kind at or behind the last one's.
    let mut expected = USER_OBJECT;
    let mut permissions = 0;
    let mut mask = None;
    let mut named = false;
    for entry in entries.chunks_exact(8) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let bits = u16::from_le_bytes([entry[2], entry[3]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        if bits > 7 {
            return Err(malformed());
        }
        expected = match (expected, tag) {
            (USER_OBJECT, USER_OBJECT) => {
                permissions |= bits << 6;
                USER
            }
            (USER, USER) if id != u32::MAX => {
                named = true;
                USER
            }
            (USER, GROUP_OBJECT) => {
                permissions |= bits << 3;
                GROUP
            }
            (GROUP, GROUP) if id != u32::MAX => {
                named = true;
                GROUP
            }
            (GROUP, MASK) => {
                mask = Some(bits);
                OTHER
            }
            (GROUP, OTHER) if !named => {
                permissions |= bits;
                0
            }
            (OTHER, OTHER) => {
                permissions |= bits;
                0
            }
            _ => return Err(malformed()),
        };
    }
    if expected != 0 {
        return Err(malformed());
    }
    if let Some(mask) = mask {
        permissions = permissions & !0o070 | mask << 3;
    }
    Ok(Some(Acl {
        permissions,
        more: named || mask.is_some(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl_of(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = 2u32.to_le_bytes().to_vec();
        for (tag, bits, id) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&bits.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }

    fn with(name: &str, value: Vec<u8>) -> Result<(Vec<Attribute>, u16)> {
        let (mut attributes, mut mode) = (Vec::new(), 0o4644);
        set(&mut attributes, &mut mode, true, &[(name.into(), value)])?;
        Ok((attributes, mode))
    }

    #[test]
    fn acls_and_modes_say_the_same() {
        let none = u32::MAX;
        let access = "system.posix_acl_access";
        let plain = acl_of(&[(1, 7, none), (4, 5, none), (32, 1, none)]);
        assert_eq!(with(access, plain).unwrap(), (vec![], 0o4751));
        let more = acl_of(&[
            (1, 6, none),
            (2, 7, 1000),
            (4, 4, none),
            (16, 7, none),
            (32, 4, none),
        ]);
        let (attributes, mode) = with(access, more.clone()).unwrap();
        assert_eq!((attributes.len(), mode), (1, 0o4674));
        assert_eq!(with("system.posix_acl_default", more).unwrap().1, 0o4644);
        assert_eq!(with(access, acl_of(&[])).unwrap(), (vec![], 0o4644));
        for bad in [
            vec![],
            vec![2, 0, 0],
            acl_of(&[(1, 7, none)]),
            acl_of(&[(1, 7, none), (2, 7, 5), (4, 7, none), (32, 7, none)]),
            acl_of(&[(1, 8, none), (4, 5, none), (32, 1, none)]),
            acl_of(&[(4, 5, none), (1, 7, none), (32, 1, none)]),
            acl_of(&[(1, 7, none), (4, 5, none), (32, 1, none), (32, 1, none)]),
        ] {
            assert!(with(access, bad.clone()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_what_a_sandbox_may_carry_passes() {
        assert!(with("trusted.overlay.opaque", vec![b'y']).unwrap().0.is_empty());
        assert!(with("user.overlay.opaque", vec![b'y']).unwrap().0.is_empty());
        assert!(with("security.selinux", vec![b'y']).unwrap().0.is_empty());
        assert!(with("user.", vec![]).is_err());
        assert!(with("user.large", vec![0; 65_536]).is_err());
        assert!(with("security.capability", vec![0; 20]).is_err());
        let capability = [&[1, 0, 0, 2][..], &[0; 16]].concat();
        let (attributes, _) = with("security.capability", capability).unwrap();
        let mut bytes = Vec::new();
        encode(&attributes, &mut bytes);
        assert_eq!((bytes.len(), size(&attributes)), (12 + 36, 12 + 36));
        assert_eq!(bytes[12..16], [10, 6, 20, 0]);
    }

    #[test]
    fn a_second_value_replaces_the_first() {
        let (mut attributes, mut mode) = (Vec::new(), 0);
        for value in [b"one", b"two"] {
            set(
                &mut attributes,
                &mut mode,
                false,
                &[(b"user.a".to_vec(), value.to_vec())],
            )
            .unwrap();
        }
        assert_eq!(attributes.len(), 1);
        assert_eq!(&*attributes[0].value, b"two");
    }
}
