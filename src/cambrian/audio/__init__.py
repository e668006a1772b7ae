"""Sound: waveforms and their files, companding, spectra, pitch. Waveforms are float tensors in [-1, 1]."""
