"""Secure aggregation: the server learns the sum of what the clients of a cohort send, and of no smaller group.

Pure: numpy and ``cryptography``, nothing of Flower and nothing of strategies.

Sources: Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (complete graph);
Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead" (k-regular graph).
"""
