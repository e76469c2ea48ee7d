//! Executes PTX on the CPU (work in progress).
