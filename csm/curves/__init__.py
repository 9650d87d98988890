"""`csm curves`: what a training logged, as one page of plots."""
