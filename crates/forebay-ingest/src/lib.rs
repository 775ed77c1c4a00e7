//! Text becomes token tensors, on all cores, written straight into the slots of a forebay ring.
