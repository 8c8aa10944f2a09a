package tpm

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// runRaw runs a command that go-tpm 0.9.8 does not have: one session that
// authorises the first handle, parameters that are not encrypted, and a
// response without parameters. Headers, the authorisation area and the HMACs
// are go-tpm's (Part 1, 18: handles, authorisation size, authorisation,
// parameters).
func (d *Device) runRaw(cc tpm2.TPMCC, s tpm2.Session, handles []tpm2.NamedHandle, parameters []byte) error {
	if err := s.NewNonceCaller(); err != nil {
		return fmt.Errorf("cannot make a nonce: %w", err)
	}
	var body []byte
	var names []tpm2.TPM2BName
	for _, h := range handles {
		body = append(body, be32(h.Handle.HandleValue())...)
		names = append(names, h.Name)
	}
	auth, err := s.Authorize(cc, parameters, nil, names, 0)
	if err != nil {
		return fmt.Errorf("cannot authorise command %#x: %w", uint32(cc), err)
	}
	area := tpm2.Marshal(auth)
	body = append(body, be32(uint32(len(area)))...)
	body = append(body, area...)
	body = append(body, parameters...)
	header := tpm2.TPMCmdHeader{
		Tag:         tpm2.TPMSTSessions,
		Length:      uint32(headerSize + len(body)),
		CommandCode: cc,
	}
	response, err := d.wire.Send(append(tpm2.Marshal(header), body...))
	if err != nil {
		return err
	}
	return checkRaw(cc, s, names, response)
}

// checkRaw checks a response that has one session and no parameters.
func checkRaw(cc tpm2.TPMCC, s tpm2.Session, names []tpm2.TPM2BName, response []byte) error {
	header, err := tpm2.Unmarshal[tpm2.TPMRspHeader](response)
	if err != nil {
		return fmt.Errorf("cannot read the response to command %#x: %w", uint32(cc), err)
	}
	if header.ResponseCode != tpm2.TPMRCSuccess {
		return header.ResponseCode
	}
	const noParameters = 4 // bytes of the parameter area's size
	if len(response) < headerSize+noParameters || [4]byte(response[headerSize:]) != [4]byte{} {
		return fmt.Errorf("cannot read the response to command %#x: it has parameters", uint32(cc))
	}
	auth, err := tpm2.Unmarshal[tpm2.TPMSAuthResponse](response[headerSize+noParameters:])
	if err != nil {
		return fmt.Errorf("cannot read the response to command %#x: %w", uint32(cc), err)
	}
	if rest := len(response) - headerSize - noParameters - len(tpm2.Marshal(auth)); rest != 0 {
		return errors.New("cannot read the response: bytes follow the authorisation")
	}
	if err := s.Validate(tpm2.TPMRCSuccess, cc, nil, names, 0, auth); err != nil {
		return fmt.Errorf("cannot trust the response to command %#x: %w", uint32(cc), err)
	}
	return nil
}
