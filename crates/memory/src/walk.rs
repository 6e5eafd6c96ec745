//! The page walk: 32-bit, PAE and 4-level paging (SDM Vol. 3A ch. 4).
