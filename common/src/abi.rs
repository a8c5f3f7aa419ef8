//! The one way a type becomes part of the map ABI.

/// Declares structs that cross the kernel boundary: `repr(C)`, `Copy`, and proven free of padding at compile time.
///
/// A struct generic over [`Family`](crate::net::Family) is written `struct Name<F>`; its layout is asserted for every family
/// that has maps. On the user side (`feature = "user"`) the types become `aya::Pod`, here and nowhere else.
macro_rules! abi {
    ($( $(#[$meta:meta])* pub struct $name:ident<$f:ident> { $( $(#[$fmeta:meta])* pub $field:ident : $ty:ty ),+ $(,)? } )+) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name<$f: crate::net::Family> { $( $(#[$fmeta])* pub $field: $ty ),+ }

        const _: () = {
            const fn fields<$f: crate::net::Family>() -> usize {
                0 $( + size_of::<$ty>() )+
            }
            assert!(size_of::<$name<crate::net::V4>>() == fields::<crate::net::V4>(), "padding in a map type");
        };

        // SAFETY: `repr(C)`, every field is itself such a type or an integer, and the assertion above excludes padding,
        // so any bit pattern is a value and every byte is initialised.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name<crate::net::V4> {}
    )+};
    ($( $(#[$meta:meta])* pub struct $name:ident { $( $(#[$fmeta:meta])* pub $field:ident : $ty:ty ),+ $(,)? } )+) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name { $( $(#[$fmeta])* pub $field: $ty ),+ }

        const _: () = assert!(size_of::<$name>() == 0 $( + size_of::<$ty>() )+, "padding in a map type");

        // SAFETY: as above.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $name {}
    )+};
}
