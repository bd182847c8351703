"""Code that the pages share. Only this package and the pages know Streamlit."""
