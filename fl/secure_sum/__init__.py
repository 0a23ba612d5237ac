"""Secure aggregation: a server that learns the sum of its sites' updates, and no summand.

The protocol is Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine
Learning" (https://eprint.iacr.org/2017/281), figure 4. Here is what server and sites share of it;
`fl.client.masking` and `fl.server.masking` speak it.
"""
