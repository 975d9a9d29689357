//! product-tests
