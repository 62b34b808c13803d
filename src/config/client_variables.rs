//! Variables of the commands that are clients of the API. Not keys of the configuration: a node ignores
//! them.

/// The address of the API.
pub const SERVER: &str = "GRIDCAST_SERVER";

/// The name and the password of a user.
pub const USER: &str = "GRIDCAST_USER";

/// The token of a user.
pub const TOKEN: &str = "GRIDCAST_TOKEN";

/// The file with the authorities that may vouch for the server.
pub const CA: &str = "GRIDCAST_CA";

/// All of them.
pub const ALL: [&str; 4] = [SERVER, USER, TOKEN, CA];
