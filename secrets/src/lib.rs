//! Secret values, references and schemes: everything cachot knows of a secret before it reaches a guest.
