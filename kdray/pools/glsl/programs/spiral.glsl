// Arms that wind around a centre.
void mainImage(out vec4 colour, in vec2 at) {
    vec2 p = centred(at) - 0.6 * (vec2(random(0), random(1)) - 0.5);
    float arms = float(count(2, 1, 6)), far = length(p) + 1e-3;
    float wind = random(3) < 0.5 ? between(4, 3.0, 9.0) * far : between(4, 1.0, 4.0) * log(far);
    float angle = atan(p.y, p.x) + 0.2 * noise(3.0 * p);
    float wave = sin(arms * angle + arms * wind * sign(random(5) - 0.5) - iTime);
    float sharp = between(6, 0.1, 1.0);
    vec3 ground = mix(ink(7), ink(8), far);
    colour = vec4(mix(ground, palette(0.4 * far), smoothstep(-sharp, sharp, wave)), 1);
}
