"""A stand-in for Colab's own package: what its functions do as seen from a notebook.

Known from googlecolab/colabtools (behaviour and messages; none of its code is here).
The environment plays the person at the browser:

    STAND_IN_CLOUD     the folder that is the account's Drive
    STAND_IN_DRIVE     what comes of one mount() after the other, the last one for all that
                       follow: granted, refused, failing, nothing, or dying
    STAND_IN_SECRETS   JSON: name -> value, or null where this notebook was refused it
"""
