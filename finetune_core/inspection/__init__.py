"""Analysis of a data set by the embeddings of a pretrained network, before anything is trained."""
