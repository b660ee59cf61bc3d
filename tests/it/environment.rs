//! Failures of the environment, which pass by themselves.
