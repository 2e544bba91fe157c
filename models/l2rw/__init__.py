"""L2RW: visible-infrared person re-identification without pooling images (CVPR 2025), and its AGW reference."""
